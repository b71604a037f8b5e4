"""Weights in 8 and 4 bits on a CPU: products of a few rows read half and a quarter of the bytes that bf16 takes.

    int8   W ≈ s ∘ Q: one scale for each output
    int4   W ≈ s ∘ (Q - 8) + z: a scale and a zero for each 32 inputs of each output

Kernels with tiles take such weights as they are. So do products of torch's, which pay for few rows; for more, the
weights are widened and multiplied as bf16.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from alpaca.serving.kernels import Matrix

GROUP = 32  # inputs that share a scale and a zero in int4
STEP = 64  # outputs that lie together in int4
FEW = {"int8": 12, "int4": 64}  # rows; with more, widening takes less time than it saves (benchmarks/products.py)
WIDENED = 16 * STEP  # outputs of int4 that are widened at a time, so that they stay near the processor
TINY = torch.finfo(torch.float32).tiny


class Int8Weight:
    """Q in int8, its scales in bf16."""

    def __init__(self, weight: Tensor, *, for_kernels: bool = False) -> None:
        # Torch's product reads whole groups, and beyond the end where there is none.
        self._more = -weight.shape[1] % GROUP
        wide = functional.pad(weight.float(), (0, self._more))
        self._scales = (wide.abs().amax(1) / 127).clamp_(min=TINY).bfloat16()
        self._numbers = wide.div_(self._scales.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8)
        self.nbytes = self._numbers.nbytes + self._scales.nbytes
        self.matrix = Matrix(self._numbers, self._scales, 8, *self._numbers.shape) if for_kernels else None
        """As the kernels read it."""

    def product(self, x: Tensor) -> Tensor:
        """x·Wᵀ by torch: x [rows, inputs] in bf16 → [rows, outputs]."""
        x = functional.pad(x, (0, self._more)) if self._more else x.contiguous()
        if len(x) <= FEW["int8"]:
            return torch._weight_int8pack_mm(x, self._numbers, self._scales)
        return functional.linear(x, self._numbers.bfloat16()).mul_(self._scales)


class Int4Weight:
    """Q from 0 to 15, two in a byte, in the order in which the kernels' product reads them, or torch's."""

    def __init__(self, weight: Tensor, *, for_kernels: bool = False) -> None:
        self._outputs = weight.shape[0]
        self._more = -weight.shape[1] % GROUP
        padded = functional.pad(weight.float(), (0, self._more, 0, -self._outputs % STEP))
        groups = padded.view(len(padded), -1, GROUP)
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        scales = ((high - low) / 15).clamp_(min=TINY).bfloat16()
        zeros = (low + 8 * scales.float()).bfloat16()
        numbers = groups.sub_(zeros.float()).div_(scales.float()).add_(8).round_().clamp_(0, 15).to(torch.int32)
        both = torch.cat((scales, zeros), -1)  # [outputs, inputs / 32, 2]
        self._scales = _blocks(both) if for_kernels else both.transpose(0, 1).contiguous()
        self._packed = _blocks(_halves(numbers)) if for_kernels else _pack(numbers.view(padded.shape))
        self.nbytes = self._packed.nbytes + self._scales.nbytes
        self.matrix = Matrix(self._packed, self._scales, 4, *weight.shape) if for_kernels else None
        """As the kernels read it; what is packed for them is nothing for torch's product."""

    def product(self, x: Tensor) -> Tensor:
        """x·Wᵀ by torch: x [rows, inputs] in bf16 → [rows, outputs]."""
        x = functional.pad(x, (0, self._more)) if self._more else x.contiguous()
        if len(x) <= FEW["int4"] or not halves_lie_apart():
            y = torch.ops.aten._weight_int4pack_mm_for_cpu(x, self._packed, GROUP, self._scales)
        else:
            starts = range(0, len(self._packed), WIDENED)
            y = torch.cat([x @ self._widened(start, start + WIDENED) for start in starts], -1)
        return y if y.shape[1] == self._outputs else y[:, : self._outputs]

    def _widened(self, start: int, end: int) -> Tensor:
        """Outputs start … end of W in bf16: [inputs, outputs]."""
        packed = self._packed[start:end].view(len(self._packed[start:end]) // STEP, -1, STEP // 2)
        numbers = torch.cat((packed & 15, packed >> 4), -1).bfloat16().sub_(8)
        numbers = numbers.view(len(packed), -1, GROUP, STEP)
        scales, zeros = self._scales[:, start:end].view(-1, len(packed), 1, STEP, 2).transpose(0, 1).unbind(-1)
        return numbers.mul_(scales).add_(zeros).view(len(packed), -1, STEP).permute(1, 0, 2).flatten(1)


QUANTIZED: dict[str, type[Int8Weight | Int4Weight]] = {"int8": Int8Weight, "int4": Int4Weight}


def _halves(groups: Tensor) -> Tensor:
    """[outputs, groups, 32] as bytes [outputs, groups, 4, 4]: the first 16 of a group below, the others above."""
    low, high = groups.to(torch.uint8).chunk(2, -1)
    return (low | high << 4).unflatten(-1, (4, 4))


def _blocks(parts: Tensor) -> Tensor:
    """[outputs, groups, n, …] as [outputs / 16, groups, n, 16, …]: what a block of outputs has lies together."""
    return parts.unflatten(0, (-1, 16)).movedim(1, 3).contiguous()


def _pack(numbers: Tensor) -> Tensor:
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, 1)
    return packed


@cache
def halves_lie_apart() -> bool:
    """Whether of 64 outputs the first 32 are the lower halves of the bytes, and the others the upper ones, input by
    input. Torch packs in this order with AVX-512; with others the weights can't be widened."""
    outputs = torch.arange(STEP, dtype=torch.int32)[:, None].expand(STEP, GROUP).contiguous()
    low, high = _pack(outputs % 16).view(GROUP, -1), _pack(outputs // 16).view(GROUP, -1)
    found = torch.cat(((low & 15) + (high & 15) * 16, (low >> 4) + (high >> 4) * 16), -1)
    return bool((found == torch.arange(STEP, dtype=torch.uint8)).all())
