"""Keys and values of every running answer, in one allocation made at start-up, and how large that may be.

    keys[layer], values[layer]: [slots, kv_heads, context, head_dim]

A slot belongs to one answer at a time. What an answer leaves behind stays readable until the slot is written anew, so
that the next turn of a conversation finds its beginning there (alpaca/serving/slots.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alpaca.errors import NoRoom
from alpaca.serving.memory import zeros

SHARE = {"cuda": 0.85, "cpu": 0.5}  # of the free memory; a step's own tensors need the rest
STEP = 64  # contexts are cut to a multiple of it
SHORTEST = 1024  # tokens; below this, slots are given up rather than context


@dataclass(frozen=True)
class CachePlan:
    """How many slots of how many tokens, and the arithmetic behind it."""

    slots: int
    context: int
    bytes_per_token: int
    reason: str


def plan_cache(
    config: Any, dtype: torch.dtype, *, slots: int, context: int, free: int, device: torch.device
) -> CachePlan:
    """Fit `slots` × `context` tokens into `free` bytes. Raises NoRoom where not even one short slot fits.

    A token takes 2 (key and value) × layers × kv_heads × head_dim numbers. Contexts are shortened first, down to
    1,024 tokens, then slots are given up.
    """
    heads, size = config.num_key_value_heads, head_dim(config)
    per_token = 2 * config.num_hidden_layers * heads * size * dtype.itemsize
    room = int(free * SHARE[device.type]) // per_token
    wanted = (slots, context)
    if slots * context > room:
        context = min(context, max(room // slots, SHORTEST) // STEP * STEP)
        slots = min(slots, room // context)
    if slots < 1:
        raise NoRoom(
            f"{free / 1e9:.2f} GB of memory are free: not enough for the keys and values of {context:,} tokens "
            f"({context * per_token / 1e9:.2f} GB). Use a smaller precision (PRECISION=nf4), a lower MAX_CONTEXT, or "
            "a smaller base"
        )
    cut = "" if (slots, context) == wanted else f"; {wanted[0]} × {wanted[1]:,} would not fit"
    reason = (
        f"{slots} slots × {context:,} tokens × {per_token / 1024:,.1f} KiB = "
        f"{slots * context * per_token / 1e9:.2f} GB of {free / 1e9:.2f} GB free{cut}"
    )
    return CachePlan(slots, context, per_token, reason)


def head_dim(config: Any) -> int:
    """Size of an attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


class KeyValueCache:
    """The memory itself. Unwritten places hold zeros, so that a masked one can't bring in a NaN."""

    def __init__(self, config: Any, plan: CachePlan, dtype: torch.dtype, device: torch.device) -> None:
        shape = (plan.slots, config.num_key_value_heads, plan.context, head_dim(config))
        layers = range(config.num_hidden_layers)
        self._written = [0] * plan.slots  # tokens of each slot that may hold anything
        self.keys = [zeros(*shape, dtype=dtype, device=device) for _ in layers]
        self.values = [zeros(*shape, dtype=dtype, device=device) for _ in layers]

    def begin(self, slot: int, kept: int) -> None:
        """A new answer takes a slot over and keeps its first `kept` tokens. The others become zeros: attention
        multiplies what is masked by 0, and what an adapter left there may be inf or NaN."""
        for memory in (*self.keys, *self.values):
            memory[slot, :, kept : self._written[slot]] = 0

    def end(self, slot: int, length: int) -> None:
        """An answer of `length` tokens gives its slot back."""
        self._written[slot] = length

    def write(self, layer: int, slots: Tensor, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        """slots, positions [n]; keys, values [n, kv_heads, head_dim]."""
        self.keys[layer][slots, :, positions] = keys
        self.values[layer][slots, :, positions] = values

    def copy(self, source: int, target: int, length: int) -> None:
        """Give slot `target` the first `length` tokens of slot `source`."""
        for memory in (*self.keys, *self.values):
            memory[target, :, :length] = memory[source, :, :length]
