"""Attention over the cache: decoding rows together where their slots lie side by side, prompts one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

SLACK = 256  # tokens; rows share a product when the longest is at most twice as long as the shortest, and this more


@dataclass(frozen=True)
class Span:
    """Decoding rows first … last whose slots are neighbours, attended to in one product."""

    first: int
    last: int
    slot: int
    length: int
    """Of the longest row, the new token included."""
    mask: Tensor | None
    """[rows, 1, 1, length], False where a shorter row has nothing; None where all are equally long."""


@dataclass(frozen=True)
class Prefill:
    """Tokens first … last of one prompt, written to `slot` from position `start` on."""

    first: int
    last: int
    slot: int
    start: int
    mask: Tensor
    """[group · tokens, start + tokens], causal; `group` query heads share a key head."""


def spans(rows: Sequence[tuple[int, int]], device: torch.device) -> list[Span]:
    """`rows`: (slot, length) of each decoding row, by rising slot."""
    groups: list[list[int]] = []
    for number, (slot, length) in enumerate(rows):
        lengths = [rows[other][1] for other in groups[-1]] + [length] if groups else []
        if lengths and slot == rows[number - 1][0] + 1 and max(lengths) <= 2 * min(lengths) + SLACK:
            groups[-1].append(number)
        else:
            groups.append([number])
    return [_span(rows, group, device) for group in groups]


def _span(rows: Sequence[tuple[int, int]], group: list[int], device: torch.device) -> Span:
    lengths = [rows[number][1] for number in group]
    longest, mask = max(lengths), None
    if min(lengths) < longest:
        there = torch.arange(longest, device=device) < torch.tensor(lengths, device=device)[:, None]
        mask = there[:, None, None, :]
    return Span(group[0], group[-1] + 1, rows[group[0]][0], longest, mask)


def prefill(first: int, count: int, slot: int, start: int, group: int, device: torch.device) -> Prefill:
    """`count` tokens of a prompt, the first of them in row `first` of the step and at position `start`."""
    causal = torch.ones(count, start + count, dtype=torch.bool, device=device).tril(start)
    return Prefill(first, first + count, slot, start, causal.repeat(group, 1))


def attend(
    query: Tensor, keys: Tensor, values: Tensor, parts: Sequence[Span | Prefill], scale: float, out: Tensor
) -> None:
    """Write each row's attention into `out`.

    query, out [tokens, heads, head_dim]; keys, values [slots, kv_heads, context, head_dim], this step's included.
    The query heads that share a key head are stacked, so that keys are neither repeated nor read twice.
    """
    kv_heads, size = keys.shape[1], keys.shape[3]
    for part in parts:
        rows = query[part.first : part.last]
        count = part.last - part.first
        if isinstance(part, Span):
            stacked = rows.view(count, kv_heads, -1, size)
            where = slice(part.slot, part.slot + count)
            k, v = keys[where, :, : part.length], values[where, :, : part.length]
            found = functional.scaled_dot_product_attention(stacked, k, v, attn_mask=part.mask, scale=scale)
            out[part.first : part.last] = found.view(count, -1, size)
            continue
        stacked = rows.view(count, kv_heads, -1, size).permute(1, 2, 0, 3).reshape(1, kv_heads, -1, size)
        end = part.start + count
        k, v = keys[part.slot, None, :, :end], values[part.slot, None, :, :end]
        found = functional.scaled_dot_product_attention(stacked, k, v, attn_mask=part.mask, scale=scale)
        out[part.first : part.last] = found.view(kv_heads, -1, count, size).permute(2, 0, 1, 3).flatten(1, 2)
