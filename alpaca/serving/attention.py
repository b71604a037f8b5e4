"""Attention over the cache: decoding rows together where their ranges lie at equal distances, prompts one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from alpaca.serving.transfer import send

SLACK = 256  # tokens; rows share a product when the longest is at most twice as long as the shortest, and this more


@dataclass(frozen=True)
class Row:
    """A row that decodes: where its answer's range of the cache begins, how long that is, and how much is in it."""

    start: int
    size: int
    length: int
    """The new token included."""


@dataclass(frozen=True)
class Span:
    """Decoding rows first … last, attended to in one product: their ranges begin every `stride` tokens."""

    first: int
    last: int
    start: int
    stride: int
    length: int
    """Of the longest row, the new token included."""
    mask: Tensor | None
    """[rows, 1, 1, length], False where a shorter row has nothing; None where all are equally long."""


@dataclass(frozen=True)
class Prefill:
    """Tokens first … last of one prompt, `done` of which are in the cache, from `start` on."""

    first: int
    last: int
    start: int
    done: int
    mask: Tensor
    """[group · tokens, done + tokens], causal; `group` query heads share a key head."""


@dataclass(frozen=True)
class Gathered:
    """Decoding rows first … last, wherever their ranges lie: what they read is copied side by side before.

    That takes time, but no shape depends on where ranges lie or on how full they are: a step of such rows alone can be
    captured and replayed (alpaca/serving/graphs.py).
    """

    first: int
    last: int
    index: Tensor
    """[rows · length] which tokens of the pool each row reads; what is masked repeats one of its own."""
    mask: Tensor
    """[rows, 1, 1, length], 0 or -inf in the queries' precision, to be added."""


Attended = Span | Prefill | Gathered


def spans(rows: Sequence[Row], device: torch.device) -> list[Span]:
    """`rows` by rising start. Two ranges always have a distance, and more of them often the same."""
    groups: list[list[Row]] = []
    for row in rows:
        if groups and _joins(row, groups[-1]):
            groups[-1].append(row)
        else:
            groups.append([row])
    found, first = [], 0
    for group in groups:
        found.append(_span(first, group, device))
        first += len(group)
    return found


def _joins(row: Row, group: list[Row]) -> bool:
    """Whether a row is as far from the group's last one as that from the one before, and neither far longer or shorter
    than the others nor so long that these would be read beyond their ranges."""
    both = [*group, row]
    longest = max(other.length for other in both)
    return (
        (len(group) == 1 or row.start - group[-1].start == group[1].start - group[0].start)
        and longest <= 2 * min(other.length for other in both) + SLACK
        and longest <= min(other.size for other in both)
    )


def _span(first: int, group: list[Row], device: torch.device) -> Span:
    lengths = [row.length for row in group]
    longest, mask = max(lengths), None
    if min(lengths) < longest:
        there = torch.arange(longest, device=device) < send(torch.tensor(lengths), device)[:, None]
        mask = there[:, None, None, :]
    stride = group[1].start - group[0].start if len(group) > 1 else 0
    return Span(first, first + len(group), group[0].start, stride, longest, mask)


def prefill(first: int, count: int, start: int, done: int, group: int, device: torch.device) -> Prefill:
    """`count` tokens of a prompt, the first of them in row `first` of the step, after `done` in the cache."""
    causal = torch.ones(count, done + count, dtype=torch.bool, device=device).tril(done)
    return Prefill(first, first + count, start, done, causal.repeat(group, 1))


def attend(query: Tensor, keys: Tensor, values: Tensor, parts: Sequence[Attended], scale: float, out: Tensor) -> None:
    """Write each row's attention into `out`.

    query, out [tokens, heads, head_dim]; keys, values [kv_heads, pool, head_dim], this step's included.
    The query heads that share a key head are stacked, so that keys are neither repeated nor read twice.
    """
    kv_heads, pool, size = keys.shape
    for part in parts:
        rows = query[part.first : part.last]
        count = part.last - part.first
        if isinstance(part, Span):
            stacked = rows.view(count, kv_heads, -1, size)
            shape, strides = (count, kv_heads, part.length, size), (part.stride * size, pool * size, size, 1)
            k, v = (
                memory.as_strided(shape, strides, memory.storage_offset() + part.start * size)
                for memory in (keys, values)
            )
            found = functional.scaled_dot_product_attention(stacked, k, v, attn_mask=part.mask, scale=scale)
            out[part.first : part.last] = found.view(count, -1, size)
            continue
        if isinstance(part, Gathered):
            stacked = rows.view(count, kv_heads, -1, size)
            k, v = (memory.index_select(1, part.index).view(kv_heads, count, -1, size) for memory in (keys, values))
            k, v = k.transpose(0, 1), v.transpose(0, 1)
            found = functional.scaled_dot_product_attention(stacked, k, v, attn_mask=part.mask, scale=scale)
            out[part.first : part.last] = found.view(count, -1, size)
            continue
        stacked = rows.view(count, kv_heads, -1, size).permute(1, 2, 0, 3).reshape(1, kv_heads, -1, size)
        end = part.start + part.done + count
        k, v = keys[None, :, part.start : end], values[None, :, part.start : end]
        found = functional.scaled_dot_product_attention(stacked, k, v, attn_mask=part.mask, scale=scale)
        out[part.first : part.last] = found.view(kv_heads, -1, count, size).permute(2, 0, 1, 3).flatten(1, 2)
