"""Attention inside a pack: every example attends to itself alone.

A pack is one row of tokens and `bounds` says where its examples begin and end. Flash attention takes that as it is.
Elsewhere each example is given its own attention, because a dense block-diagonal mask costs the square of the whole
pack. On a CPU short examples go through plain matrix products, which are several times faster there than
scaled_dot_product_attention (benchmarks/attention.py) and keep nothing but queries, keys and values.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

PACKED = "alpaca_packed"
SHORT = 512  # tokens; beyond it scaled_dot_product_attention is faster and needs less memory


def choose_attention(device: torch.device, precision: str) -> tuple[str, str]:
    """Return (name for transformers' attn_implementation, the reason for it). PACKED must be registered to be used."""
    from transformers.utils import is_flash_attn_2_available

    if device.type == "cuda" and precision != "fp32" and is_flash_attn_2_available():
        return "flash_attention_2", "flash attention is installed"
    how = "SDPA" if device.type == "cuda" else f"matrix products up to {SHORT} tokens, SDPA beyond"
    return PACKED, f"{how}, each example of a pack by itself (no flash attention here)"


def register() -> None:
    """Make PACKED known to transformers. No mask function is registered for it, so that no mask is made."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    bounds: list[int] | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each example to itself; `bounds` are cumulative lengths, [0, …, tokens].

    query [1, heads, tokens, head_dim]; key, value [1, kv_heads, tokens, head_dim].
    Returns [1, tokens, heads, head_dim], as transformers expects it.
    """
    if attention_mask is not None:
        raise ValueError("packed attention takes no mask: the pack's bounds say what belongs together")
    if query.shape[0] != 1:
        raise ValueError(f"packed attention takes one row of tokens, not {query.shape[0]}")
    bounds = bounds or [0, query.shape[2]]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    where = query.device.type
    if torch.is_autocast_enabled(where):  # which would choose for each product inside; all of it is in one dtype
        low = torch.get_autocast_dtype(where)
        query, key, value = query.to(low), key.to(low), value.to(low)
    with torch.autocast(where, enabled=False):
        parts = [
            _attend(query[:, :, start:end], key[:, :, start:end], value[:, :, start:end], scale, dropout)
            for start, end in pairwise(bounds)
        ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)), None


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float) -> Tensor:
    if query.device.type == "cpu" and query.shape[2] <= SHORT and not dropout:
        out: Tensor = ShortAttention.apply(query, key, value, scale)
        return out.transpose(1, 2)
    return functional.scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=True, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    ).transpose(1, 2)


class ShortAttention(torch.autograd.Function):
    """Causal attention of one example as three batched matrix products.

    query [1, heads, n, d]; key, value [1, kv_heads, n, d] → [1, heads, n, d]. The query heads that share a key head
    are stacked into one matrix. The probabilities are computed again in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        queries = query.reshape(key.shape[1], -1, query.shape[-1]) * scale
        key, value = key[0].contiguous(), value[0].contiguous()
        ctx.save_for_backward(queries, key, value)
        ctx.scale = scale
        return torch.bmm(_probabilities(queries, key), value).view(query.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, key, value = ctx.saved_tensors
        grads = grad.reshape(queries.shape)
        probabilities = _probabilities(queries, key)
        grad_value = torch.bmm(probabilities.transpose(1, 2), grads)
        grad_scores = torch._softmax_backward_data(
            torch.bmm(grads, value.transpose(1, 2)), probabilities, -1, probabilities.dtype
        )
        grad_query = torch.bmm(grad_scores, key).mul_(ctx.scale).view(grad.shape)
        return grad_query, torch.bmm(grad_scores.transpose(1, 2), queries)[None], grad_value[None], None


def _probabilities(queries: Tensor, key: Tensor) -> Tensor:
    """softmax(queries · keyᵀ) under the causal mask: [kv_heads, group · n, n] from queries already scaled."""
    length = key.shape[1]
    future = torch.full((length, length), float("-inf"), dtype=key.dtype, device=key.device).triu_(1)
    scores = torch.bmm(queries, key.transpose(1, 2))
    scores.view(key.shape[0], -1, length, length).add_(future)
    return torch.softmax(scores, dim=-1)
