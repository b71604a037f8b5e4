"""The two ways to lay out rotary pairs in query and key rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def interleaved_to_halves(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Reorder query or key rows [n_heads * d, dim]: rotary pairs (0, 1), (2, 3), … become (0, d/2), (1, d/2 + 1), ….

    Meta and llama.cpp rotate neighbours as one complex number (RoFormer, arXiv:2104.09864, eq. 34); Hugging Face
    rotates the first half of a head against the second. The rotation is the same once the rows are in the other order.
    """
    rows = weight.shape[0]
    pairs = weight.reshape(n_heads, rows // n_heads // 2, 2, -1)
    return pairs.transpose(1, 2).reshape(weight.shape)


def halves_to_interleaved(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """The inverse of `interleaved_to_halves`: rows [n_heads * d, …] as Meta and llama.cpp order them."""
    rows = weight.shape[0]
    halves = weight.reshape(n_heads, 2, rows // n_heads // 2, -1)
    return halves.transpose(1, 2).reshape(weight.shape)
