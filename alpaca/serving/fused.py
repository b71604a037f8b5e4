"""All layers of a base in one call of the kernels.

Between two calls Python takes up to ten microseconds, as long as what it calls: the matrices that are read in between
leave nothing of Python in the processor's caches. So a step whose rows need nothing of torch's is one call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from alpaca.serving.kernels import FEW, Kernels, Matrix
from alpaca.serving.norm import RmsNorm
from alpaca.serving.projection import Projection

_POINTER, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float


class _Matrix(ctypes.Structure):
    _fields_ = [("numbers", _POINTER), ("scales", _POINTER), ("bits", _LONG), ("outputs", _LONG), ("inputs", _LONG)]


class _Linear(ctypes.Structure):
    _fields_ = [
        ("matrix", _Matrix), ("bias", _POINTER), ("down", _POINTER), ("up", _POINTER), ("ends", _POINTER),
        ("members", _LONG),
    ]  # fmt: skip


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _POINTER) for name in ("input_norm", "query_norm", "key_norm", "mlp_norm")),
        *((name, _Linear) for name in ("qkv", "out", "gate_up", "down")),
    ]


class _Base(ctypes.Structure):
    _fields_ = [
        ("layers", ctypes.POINTER(_Layer)), ("count", _LONG), ("query_heads", _LONG), ("kv_heads", _LONG),
        ("size", _LONG), ("eps", _FLOAT), ("cos", _POINTER), ("sin", _POINTER), ("tiles", _LONG),
    ]  # fmt: skip


@dataclass
class Layer:
    """One layer of a base, taken over."""

    input_norm: RmsNorm
    qkv: Projection
    out: Projection
    query_norm: RmsNorm | None
    key_norm: RmsNorm | None
    mlp_norm: RmsNorm
    gate_up: Projection
    down: Projection


class Fused:
    """The layers of one base. What they point to belongs to the decoder, and never moves."""

    def __init__(
        self, kernels: Kernels, layers: Sequence[Layer], *, heads: tuple[int, int, int], eps: float,
        tables: tuple[Tensor, Tensor],
    ) -> None:  # fmt: skip
        """`heads`: of queries, of keys, and the size of one; `tables`: cos and signed sin, [positions, size]. Raises
        ValueError for layers that kernels can't multiply with, such as bitsandbytes' own."""
        self._kernels = kernels
        self._layers = (_Layer * len(layers))(*(_layer(layer) for layer in layers))
        self._base = _Base(
            self._layers, len(layers), *heads, eps, tables[0].data_ptr(), tables[1].data_ptr(), kernels.tiles
        )

    def takes(self, rows: int) -> bool:
        """Whether a step of so many rows is faster this way."""
        return self._kernels.tiles or rows <= FEW

    def run(
        self, x: Tensor, positions: Tensor, where: Tensor, memories: Sequence[Tensor], alone: tuple[Tensor, Tensor],
        strengths: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """x [rows, hidden] after the embedding → before the last norm, in place; keys and values go into `memories`.

        All rows are written, and attend alone: see Kernels.attention. `strengths` [rows, width], where there are
        adapters.
        """
        starts, lengths = alone
        used = None if strengths is None else strengths.contiguous()
        addresses = (_POINTER * len(memories))(*(memory.data_ptr() for memory in memories))
        self._kernels.functions.layers(
            ctypes.addressof(self._base), x.data_ptr(), len(x), len(where), positions.data_ptr(), where.data_ptr(),
            ctypes.addressof(addresses), memories[0].shape[1], starts.data_ptr(), lengths.data_ptr(),
            None if used is None else used.data_ptr(), 0 if used is None else used.shape[1],
        )  # fmt: skip
        return x


def _layer(layer: Layer) -> _Layer:
    norms = (layer.input_norm, layer.query_norm, layer.key_norm, layer.mlp_norm)
    linears = (layer.qkv, layer.out, layer.gate_up, layer.down)
    return _Layer(*(norm and norm.weight.data_ptr() for norm in norms), *map(_linear, linears))


def _linear(projection: Projection) -> _Linear:
    matrix, up = projection.matrix, projection.up_turned
    if matrix is None or up is None:
        raise ValueError("a layer is no matrix of the kernels")
    bias = None if projection.bias is None else projection.bias.data_ptr()
    ends = projection.ends.data_ptr()
    return _Linear(_matrix(matrix), bias, projection.down.data_ptr(), up.data_ptr(), ends, projection.members)


def _matrix(matrix: Matrix) -> _Matrix:
    scales = None if matrix.scales is None else matrix.scales.data_ptr()
    return _Matrix(matrix.numbers.data_ptr(), scales, matrix.bits, matrix.outputs, matrix.inputs)
