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
from torch.nn import functional

from alpaca.serving.memory import zeros


@dataclass(frozen=True)
class Mix:
    """Which adapters the tokens of a step use."""

    width: int
    """How many columns are in use, counted from the first."""
    strengths: dict[int, Tensor]
    """members → [tokens, width · members]; every column repeated for each member of a projection."""
    gains: list[tuple[Tensor, str]] = field(default_factory=list)
    """DoRA: (indices of the tokens, the adapter's content hash)."""


class Projection:
    """One product for layers that share their input, such as q, k and v; their outputs come side by side."""

    def __init__(self, linears: Sequence[nn.Module], columns: int) -> None:
        """Dense layers are moved into one matrix and become views of it."""
        self.linears = list(linears)
        self.members = len(linears)
        self.columns = columns
        self.sizes = [int(linear.out_features) for linear in linears]  # type: ignore[arg-type]
        self.size = sum(self.sizes)
        self.dense = all(type(linear) is nn.Linear for linear in linears)
        self.gains: dict[str, Tensor] = {}
        self._used: dict[int, tuple[Tensor, Tensor | None, dict[torch.dtype, Tensor]]] = {}
        first: Tensor = linears[0].weight  # type: ignore[assignment]
        inputs, rows = int(linears[0].in_features), columns * self.members  # type: ignore[arg-type]
        dtype = first.dtype if self.dense else torch.bfloat16
        device = first.device
        self.weight = zeros(self.size * self.dense + rows, inputs, dtype=dtype, device=device)
        self.bias = self._join_biases(rows) if self.dense else None
        if self.dense:
            self._move_in()
        self.ups = {kind: zeros(rows, self.size, dtype=kind, device=device) for kind in up_dtypes(dtype, device)}

    @property
    def down(self) -> Tensor:
        """A: [columns · members, inputs]."""
        return self.weight[self.size * self.dense :]

    def __call__(self, x: Tensor, mix: Mix | None = None) -> Tensor:
        """x [tokens, inputs] → [tokens, outputs of all members]."""
        width = mix.width * self.members if mix else 0
        weight, bias, ups = self._used.get(width) or self._use(width)
        if self.dense:
            y = functional.linear(x, weight, bias)
            if mix is None or not width:
                return y
            low, y = y.narrow(1, self.size, width), y.narrow(1, 0, self.size)
        else:
            y = torch.cat([linear(x) for linear in self.linears], -1) if self.members > 1 else self.linears[0](x)
            if mix is None or not width:
                return y
            low = functional.linear(x, weight)
        for rows, digest in mix.gains:
            if digest in self.gains:
                y[rows] *= self.gains[digest]
        strengths = mix.strengths[self.members]
        up = ups[strengths.dtype]
        if strengths.dtype == y.dtype:
            return y.addmm_(low * strengths, up)
        return y.add_((low * strengths) @ up)

    def _use(self, width: int) -> tuple[Tensor, Tensor | None, dict[torch.dtype, Tensor]]:
        """The parts of the matrices that a step over `width` columns multiplies with; kept, for slicing takes time."""
        rows = self.size * self.dense + width
        bias = None if self.bias is None else self.bias[:rows]
        self._used[width] = self.weight[:rows], bias, {kind: up[:width] for kind, up in self.ups.items()}
        return self._used[width]

    # --- adapters -------------------------------------------------------------------------------------------------
    def clear(self, columns: Tensor) -> None:
        """Empty the places of an adapter."""
        for member in range(self.members):
            rows = columns * self.members + member
            for matrix in (self.down, *self.ups.values()):
                matrix[rows] = 0

    def load(self, member: int, columns: Tensor, a: Tensor, b: Tensor) -> None:
        """Copy one layer's adapter in: a [rank, inputs], b [rank, outputs of the member], scaled."""
        rows = columns[: len(a)] * self.members + member
        start = sum(self.sizes[:member])
        self.down[rows] = a.to(self.down)
        for up in self.ups.values():
            up[rows, start : start + self.sizes[member]] = b.to(up)

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


def up_dtypes(dtype: torch.dtype, device: torch.device) -> list[torch.dtype]:
    """In what precisions B is kept: the base's, and first the one that a step of a single token uses.

    On a CPU a product as thin as that is several times faster in fp32 than in bf16, and a wider one slower.
    """
    return [torch.float32, dtype] if device.type == "cpu" and dtype != torch.float32 else [dtype]
