"""Products of a step's rows with a large matrix, in the form that is fastest where they run.

On a CPU a few rows times a large matrix is a matter of reading the matrix. In bf16 that is a quarter to a half faster
when the matrix stands on the left, W·xᵀ, than on the right (benchmarks/products.py). The result is then a transposed
view: its columns lie in one piece, not its rows. A single row is fastest as a vector.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·Wᵀ + bias: x [rows, inputs], weight [outputs, inputs], bias [outputs] → [rows, outputs]."""
    if len(x) == 1 and x.device.type == "cpu":
        return (torch.mv(weight, x[0]) if bias is None else torch.addmv(bias, weight, x[0]))[None]
    if not _left(x):
        return functional.linear(x, weight, bias)
    if bias is None:
        return torch.mm(weight, x.t()).t()
    return torch.addmm(bias[:, None], weight, x.t()).t()


def columns_whole(x: Tensor) -> Tensor:
    """x [rows, width] laid out as products lay their results out, so that sums with them need no reordering."""
    return x.t().contiguous().t() if _left(x) else x


def _left(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.bfloat16
