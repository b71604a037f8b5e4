"""Keys and values of every running answer, in one allocation made at start-up, and how large that may be.

    memory[layer]: [2 · kv_heads, tokens, head_dim], the heads of the keys, then those of the values

An answer has a range of the tokens (alpaca/serving/slots.py). What it leaves behind stays readable until somebody else
gets the range, so that the next turn of a conversation finds its beginning there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alpaca.errors import NoRoom
from alpaca.serving.draft import LONGEST
from alpaca.serving.memory import zeros
from alpaca.serving.slots import BLOCK, in_blocks

SHARE = {"cuda": 0.85, "cpu": 0.5}  # of the free memory; a step's own tensors need the rest
PLACES = {"cuda": 64, "cpu": 16}  # answers made at the same time; more gain little there
WHOLE = {"cuda": 64, "cpu": 8}  # contexts in full that are set aside where memory is plenty
USUAL = 512  # tokens; so much there is for each place at least, or there are fewer
SHORTEST = 1024  # tokens; with a shorter context, no engine


@dataclass(frozen=True)
class CachePlan:
    """How many tokens, for how many answers of what length at most, and the arithmetic behind it."""

    tokens: int
    context: int
    places: int
    bytes_per_token: int
    reason: str


def plan_cache(
    config: Any, dtype: torch.dtype, *, places: int | None, context: int, free: int, device: torch.device
) -> CachePlan:
    """Share `free` bytes out. Raises NoRoom where not even one short context fits.

    A token takes 2 (key and value) × layers × kv_heads × head_dim numbers. Without a number of `places` there are as
    many as the device makes use of, if memory allows.
    """
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim(config) * dtype.itemsize
    room = int(free * SHARE[device.type]) // per_token // BLOCK * BLOCK
    wanted = min(places or PLACES[device.type], WHOLE[device.type]) * in_blocks(context)
    tokens = min(wanted, room)
    if tokens < min(in_blocks(context), SHORTEST):
        least = min(context, SHORTEST)
        raise NoRoom(
            f"{free / 1e9:.2f} GB of memory are free: not enough for the keys and values of {least:,} tokens "
            f"({least * per_token / 1e9:.2f} GB). Use a smaller precision (PRECISION=nf4), a lower MAX_CONTEXT, or "
            "a smaller base"
        )
    places = min(places, tokens // BLOCK) if places else max(1, min(PLACES[device.type], tokens // USUAL))
    context = min(context, tokens)
    cut = "" if tokens == wanted else f"; {wanted:,} would not fit"
    reason = (
        f"{tokens:,} tokens × {per_token / 1024:,.1f} KiB = {tokens * per_token / 1e9:.2f} GB of {free / 1e9:.2f} GB "
        f"free, for {places} {'answer' if places == 1 else 'answers'} at a time, each of up to {context:,} tokens{cut}"
    )
    return CachePlan(tokens, context, places, per_token, reason)


def head_dim(config: Any) -> int:
    """Size of an attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


class KeyValueCache:
    """The memory itself. Whatever an answer has not written yet in its range is zero, because attention multiplies
    what is masked by 0, and what another adapter left there may be inf or NaN."""

    def __init__(self, config: Any, plan: CachePlan, dtype: torch.dtype, device: torch.device) -> None:
        heads = config.num_key_value_heads
        self._written = np.zeros(-(-plan.tokens // BLOCK), bool)  # blocks that somebody left something in
        self.memory = [
            zeros(2 * heads, plan.tokens, head_dim(config), dtype=dtype, device=device)
            for _ in range(config.num_hidden_layers)
        ]
        self.keys = [memory[:heads] for memory in self.memory]
        self.values = [memory[heads:] for memory in self.memory]

    def write(self, layer: int, where: Tensor, both: Tensor) -> None:
        """where [n] in the pool; both [n, 2 · kv_heads, head_dim]: the keys, then the values."""
        self.memory[layer].index_copy_(1, where, both.transpose(0, 1))

    def begin(self, start: int, size: int, kept: int) -> None:
        """A new answer takes a range over, with the first `kept` tokens as they are; the others become zeros."""
        first = (start + kept) // BLOCK
        found = np.flatnonzero(self._written[first : (start + size) // BLOCK])
        if not len(found):
            return
        end = (first + int(found[-1]) + 1) * BLOCK
        for memory in self.memory:
            memory[:, start + kept : end] = 0
        self._written[-(-(start + kept) // BLOCK) : end // BLOCK] = False

    def end(self, start: int, length: int) -> None:
        """An answer of `length` tokens gives its range back. Wrong guesses may have left something behind these."""
        self._written[start // BLOCK : -(-(start + length + LONGEST) // BLOCK)] = True

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy `length` tokens to another place, which may overlap with where they are."""
        for memory in self.memory:
            memory[:, target : target + length] = memory[:, source : source + length].clone()

    def move(self, source: int, target: int, length: int, size: int) -> None:
        """An answer of `length` tokens so far goes on in the range of `size` that begins at `target`."""
        self.copy(source, target, length)
        self.end(source, length)
        self.begin(target, size, length)
