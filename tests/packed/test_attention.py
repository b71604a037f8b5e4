"""Attention inside a pack: equal to a dense block-diagonal mask, forward and backward; nothing crosses a border."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from alpaca.packed import attention
from alpaca.packed.attention import ShortAttention, choose_attention, packed_attention

SCALE = 0.25


def made(heads: int, kv_heads: int, length: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(1, heads, length, 16), (1, kv_heads, length, 16), (1, kv_heads, length, 16)]
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]


def dense(query: Tensor, key: Tensor, value: Tensor, bounds: list[int]) -> Tensor:
    """The whole pack under one mask: causal, block-diagonal."""
    length = query.shape[2]
    owner = torch.zeros(length, dtype=torch.long)
    for number, (start, end) in enumerate(pairwise(bounds)):
        owner[start:end] = number
    allowed = (owner[:, None] == owner[None]) & torch.ones(length, length, dtype=torch.bool).tril()
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=allowed, scale=SCALE, enable_gqa=query.shape[1] != key.shape[1]
    ).transpose(1, 2)


def packed(query: Tensor, key: Tensor, value: Tensor, bounds: list[int] | None) -> Tensor:
    return packed_attention(nn.Module(), query, key, value, None, scaling=SCALE, bounds=bounds)[0]


def run(attend: object, tensors: list[Tensor], *rest: object) -> tuple[Tensor, list[Tensor]]:
    inputs = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    out: Tensor = attend(*inputs, *rest)  # type: ignore[operator]
    (out * torch.arange(out.numel(), dtype=out.dtype).view(out.shape).cos()).sum().backward()
    return out.detach(), [tensor.grad for tensor in inputs if tensor.grad is not None]


@pytest.mark.parametrize("short", [1024, 0], ids=["matrix products", "sdpa"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("bounds", [[0, 12], [0, 1, 12], [0, 5, 6, 9, 12], list(range(13))])
def test_equal_to_the_dense_mask(monkeypatch: pytest.MonkeyPatch, short: int, kv_heads: int, bounds: list[int]) -> None:
    monkeypatch.setattr(attention, "SHORT", short)
    tensors = made(4, kv_heads, 12)
    out, grads = run(packed, tensors, bounds)
    wanted, wanted_grads = run(dense, tensors, bounds)
    torch.testing.assert_close(out, wanted)
    for got, want in zip(grads, wanted_grads, strict=True):
        torch.testing.assert_close(got, want)


def test_no_bounds_is_one_example() -> None:
    tensors = made(4, 2, 9)
    torch.testing.assert_close(packed(*tensors, None), packed(*tensors, [0, 9]))


def test_short_attention_by_finite_differences() -> None:
    query, key, value = made(4, 2, 3)
    assert torch.autograd.gradcheck(lambda q, k, v: ShortAttention.apply(q, k, v, SCALE), (query, key, value))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_two_ways_agree_in_lower_precision(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    tensors = made(4, 2, 40, dtype)
    out, grads = run(packed, tensors, [0, 30, 40])
    monkeypatch.setattr(attention, "SHORT", 0)
    wanted, wanted_grads = run(packed, tensors, [0, 30, 40])
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    for got, want in zip([out, *grads], [wanted, *wanted_grads], strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)


def test_nothing_crosses_a_border() -> None:
    query, key, value = made(4, 2, 10)
    before = packed(query, key, value, [0, 4, 10])
    with torch.no_grad():
        for tensor in (query, key, value):
            tensor[:, :, 4:] += 100
    after = packed(query, key, value, [0, 4, 10])
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4:], after[:, 4:])


def test_a_batch_of_rows_and_a_mask_are_refused() -> None:
    query, key, value = made(4, 2, 10)
    for given, mask in (([t.expand(2, -1, -1, -1) for t in (query, key, value)], None), ([query, key, value], query)):
        with pytest.raises(ValueError, match="packed attention takes"):
            packed_attention(nn.Module(), *given, mask, bounds=[0, 10])


def test_the_choice_is_said() -> None:
    name, reason = choose_attention(torch.device("cpu"), "fp32")
    assert name == attention.PACKED
    assert "no flash attention" in reason
