"""Linear layers of the base that read the same input, with room for many adapters beside them.

    y = x·Wᵀ + (x·Aᵀ ∘ strengths)·B

A holds the down-projections of all loaded adapters, B the up-projections, already scaled by alpha / r. A token's row
of `strengths` has its adapter's scale in the columns that belong to this adapter and 0 elsewhere, so every token of a
batch may use another adapter, or several, which add up. Where the base is dense, A lies below W in one matrix: one
product gives both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from alpaca.serving.kernels import Kernels, Matrix
from alpaca.serving.memory import zeros
from alpaca.serving.product import product
from alpaca.serving.quantized import QUANTIZED


@dataclass(frozen=True)
class Mix:
    """Which adapters the tokens of a step use."""

    width: int
    """How many columns are in use, counted from the first."""
    strengths: dict[int, Tensor]
    """members → [tokens, width · members]; every column repeated for each member of a projection. Kernels take them
    unrepeated."""
    gains: list[tuple[Tensor, str]] = field(default_factory=list)
    """DoRA: (indices of the tokens, the adapter's content hash)."""


class Projection:
    """One product for layers that share their input, such as q, k and v; their outputs come side by side."""

    def __init__(
        self, linears: Sequence[nn.Module], columns: int, bits: str | None = None, kernels: Kernels | None = None
    ) -> None:
        """Dense layers are moved into one matrix and become views of it, or into one of fewer `bits` (int8, int4) and
        are empty afterwards."""
        self.linears = list(linears)
        self.members = len(linears)
        self.columns = columns
        self.sizes = [int(linear.out_features) for linear in linears]  # type: ignore[arg-type]
        self.size = sum(self.sizes)
        plain = all(type(linear) is nn.Linear for linear in linears)
        self.dense = plain and bits is None
        self.gains: dict[str, Tensor] = {}
        self._used: dict[int, tuple[Tensor, Tensor | None, Tensor, Tensor | None]] = {}
        first: Tensor = linears[0].weight  # type: ignore[assignment]
        inputs, rows = int(linears[0].in_features), columns * self.members  # type: ignore[arg-type]
        dtype = first.dtype if self.dense else torch.bfloat16
        device = first.device
        self.weight = zeros(self.size * self.dense + rows, inputs, dtype=dtype, device=device)
        self.bias = self._join_biases(rows * self.dense) if plain else None
        tiles = kernels is not None and kernels.tiles
        self._quantized = QUANTIZED[bits](self._move_out(), for_kernels=tiles) if plain and bits else None
        if self.dense:
            self._move_in()
        self.kernels = kernels
        dense = Matrix.dense(self.weight[: self.size]) if self.dense else None
        self.matrix = dense if self._quantized is None else self._quantized.matrix
        self.ends = torch.tensor(self.sizes).cumsum(0)
        self.up = None if kernels else zeros(self.size, rows, dtype=dtype, device=device)
        self.up_turned = turned_up(rows, self.size, dtype, device, kernels)

    @property
    def down(self) -> Tensor:
        """A: [columns · members, inputs]."""
        return self.weight[self.size * self.dense :]

    def __call__(self, x: Tensor, mix: Mix | None = None) -> Tensor:
        """x [tokens, inputs] → [tokens, outputs of all members]."""
        if self.kernels is not None:
            return self._by_kernels(self.kernels, x, mix)
        width = mix.width * self.members if mix else 0
        weight, bias, up, alone = self._used.get(width) or self._use(width)
        y = product(x, weight, bias) if self.dense else self._base(x)
        if mix is None or not width:
            return y
        if self.dense:
            low, y = y.narrow(1, self.size, width), y.narrow(1, 0, self.size)
        else:
            low = product(x, weight)
        for rows, digest in mix.gains:
            if digest in self.gains:
                y[rows] *= self.gains[digest]
        low = low * mix.strengths[self.members]
        if alone is not None and len(x) == 1:
            return y.add_(low.float() @ alone)
        return y.t().addmm_(up, low.t()).t() if y.stride(0) == 1 else y.addmm_(low, up.t())

    def _by_kernels(self, kernels: Kernels, x: Tensor, mix: Mix | None) -> Tensor:
        bias = None if self.bias is None else self.bias[: self.size]
        y = self._base(x) if self.matrix is None else kernels.product(x, self.matrix, bias)
        if mix is None or not mix.width:
            return y
        for rows, digest in mix.gains:
            if digest in self.gains:
                y[rows] *= self.gains[digest]
        assert self.up_turned is not None
        return kernels.add_adapters(y, x, self.down, self.up_turned, mix.strengths[1], self.ends)

    def _base(self, x: Tensor) -> Tensor:
        """The base's layers where they are quantised, here or by bitsandbytes."""
        if self._quantized is None:
            return torch.cat([linear(x) for linear in self.linears], -1) if self.members > 1 else self.linears[0](x)
        y = self._quantized.product(x)
        return y if self.bias is None else y.add_(self.bias)

    def _use(self, width: int) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """The parts of the matrices that a step over `width` columns multiplies with; kept, for slicing takes time."""
        rows = self.size * self.dense + width
        bias = None if self.bias is None else self.bias[: self.size + width * self.dense]
        alone = None if self.up_turned is None else self.up_turned[:width]
        assert self.up is not None
        self._used[width] = self.weight[:rows], bias, self.up[:, :width], alone
        return self._used[width]

    # --- adapters -------------------------------------------------------------------------------------------------
    def clear(self, columns: Tensor) -> None:
        """Empty the places of an adapter."""
        for member in range(self.members):
            rows = columns * self.members + member
            self.down[rows] = 0
            if self.up is not None:
                self.up[:, rows] = 0
            if self.up_turned is not None:
                self.up_turned[rows] = 0

    def load(self, member: int, columns: Tensor, a: Tensor, b: Tensor) -> None:
        """Copy one layer's adapter in: a [rank, inputs], b [rank, outputs of the member], scaled."""
        rows = columns[: len(a)] * self.members + member
        start = sum(self.sizes[:member])
        self.down[rows] = a.to(self.down)
        outputs = slice(start, start + self.sizes[member])
        if self.up is not None:
            self.up[outputs, rows] = b.T.to(self.up)
        if self.up_turned is not None:
            self.up_turned[rows, outputs] = b.to(self.up_turned)

    def set_gain(self, digest: str, member: int, gain: Tensor) -> None:
        """Remember DoRA's factors [outputs of the member] for an adapter; outputs without one keep 1."""
        gains = self.gains.setdefault(digest, torch.ones(self.size, device=self.weight.device))
        start = sum(self.sizes[:member])
        gains[start : start + self.sizes[member]] = gain

    # --- the base's weights ---------------------------------------------------------------------------------------
    def _move_in(self) -> None:
        start = 0
        for linear in self.linears:
            end = start + int(linear.out_features)  # type: ignore[arg-type]
            place = self.weight[start:end]
            place.copy_(linear.weight)  # type: ignore[arg-type]
            linear.weight.data = place
            start = end

    def _move_out(self) -> Tensor:
        whole = torch.cat([linear.weight for linear in self.linears])  # type: ignore[misc]
        for linear in self.linears:
            linear.weight.data = whole.new_empty(0)
        return whole

    def _join_biases(self, rows: int) -> Tensor | None:
        if all(linear.bias is None for linear in self.linears):
            return None
        joined = self.weight.new_zeros(self.size + rows)
        start = 0
        for linear, size in zip(self.linears, self.sizes, strict=True):
            if linear.bias is not None:
                joined[start : start + size] = linear.bias  # type: ignore[assignment]
            start += size
        return joined


def turned_up(
    rows: int, outputs: int, dtype: torch.dtype, device: torch.device, kernels: Kernels | None
) -> Tensor | None:
    """B [columns · members, outputs] as kernels read it, or a second time in fp32 for steps of a single row: on a CPU a
    product as thin as that is twice as fast in fp32 as in bf16, and a wider one slower."""
    if kernels is not None:
        return zeros(rows, outputs, dtype=dtype, device=device)
    return zeros(rows, outputs, dtype=torch.float32, device=device) if alone_apart(dtype, device) else None


def alone_apart(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether B is kept a second time, in fp32, without kernels."""
    return device.type == "cpu" and dtype != torch.float32
