"""The operations of a step in alpaca/serving/native, compiled for this processor where a compiler is.

torch's products of a few rows take about twice as long on a CPU as it takes to read the matrix, and each of its
operations a few microseconds to start, some hundreds of times a step. These read each matrix once and are few. Without
a compiler, or for a base that they are not for, everything is computed by torch.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from alpaca.paths import cache_home
from alpaca.progress import Say
from alpaca.words import one_line

SOURCE = Path(__file__).with_name("native") / "kernels.cpp"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-pthread", "-fPIC", "-shared", "-w")
COMPILE_SECONDS = 120
FEW = 4
"""Rows; where the processor has no tiles, torch is faster with more (benchmarks/products.py)."""
_POINTER, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
_TAKES: dict[str, list[Any]] = {
    "has_tiles": [],
    "use_threads": [_LONG],
    "product": [_POINTER, _LONG, _POINTER, _POINTER, *[_LONG] * 3, _POINTER, _POINTER, _LONG, _LONG],
    "rms_norm": [_POINTER, _LONG, _LONG, _POINTER, _FLOAT, _POINTER],
    "gated": [_POINTER, _LONG, _LONG, _POINTER],
    "attention": [_POINTER, *[_LONG] * 5, *[_POINTER] * 5, _LONG, _POINTER, _POINTER, _FLOAT, _POINTER],
    "adapters": [_POINTER, *[_LONG] * 2, *[_POINTER] * 3, *[_LONG] * 2, *[_POINTER] * 2, _LONG],
    "layers": [_POINTER, _POINTER, _LONG, _LONG, *[_POINTER] * 3, _LONG, *[_POINTER] * 3, _LONG],
}


class NoKernels(Exception):
    """They can't be made here; its text says why."""


@dataclass(frozen=True)
class Matrix:
    """Weights [outputs, inputs] as the products read them; native/matrix.h says how they lie."""

    numbers: Tensor
    scales: Tensor | None
    bits: int
    outputs: int
    inputs: int

    @classmethod
    def dense(cls, weight: Tensor) -> Matrix:
        """bf16, as it is."""
        return cls(weight, None, 16, *weight.shape)


class Kernels:
    """All tensors are in bf16 on the CPU, rows in one piece."""

    def __init__(self, library: ctypes.CDLL) -> None:
        for name, takes in _TAKES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = takes, _LONG if name == "has_tiles" else None
        self.functions = library
        self.tiles = bool(library.has_tiles())
        library.use_threads(torch.get_num_threads())

    def product(self, x: Tensor, matrix: Matrix, bias: Tensor | None = None, *, wide: bool = False) -> Tensor:
        """x·Wᵀ + bias: x [rows, inputs] → [rows, outputs]; `wide`: in fp32."""
        if not self.tiles and len(x) > FEW and matrix.bits == 16:
            y = functional.linear(x, matrix.numbers, bias)
            return y.float() if wide else y
        x = x.contiguous()
        y = torch.empty(len(x), matrix.outputs, dtype=torch.float32 if wide else torch.bfloat16)
        self.functions.product(
            x.data_ptr(), len(x), matrix.numbers.data_ptr(), _address(matrix.scales), matrix.bits, matrix.outputs,
            matrix.inputs, _address(bias), y.data_ptr(), wide, self.tiles,
        )  # fmt: skip
        return y

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """weight · x / sqrt(mean(x²) + eps) over the last dimension."""
        x = x.contiguous()
        y = torch.empty_like(x)
        width = x.shape[-1]
        self.functions.rms_norm(x.data_ptr(), x.numel() // width, width, weight.data_ptr(), eps, y.data_ptr())
        return y

    def gated(self, gate_up: Tensor) -> Tensor:
        """silu(gate) · up: [rows, gate and up side by side] → [rows, half as much]."""
        rows, width = gate_up.shape
        y = gate_up.new_empty(rows, width // 2)
        self.functions.gated(gate_up.data_ptr(), rows, width // 2, y.data_ptr())
        return y

    def attention(
        self, heads: Tensor, query_heads: int, tables: tuple[Tensor, Tensor], positions: Tensor, where: Tensor,
        memory: Tensor, starts: Tensor, lengths: Tensor, scale: float,
    ) -> Tensor:  # fmt: skip
        """Turn queries and keys by their positions, in `heads` itself; write keys and values into `memory`; attend.

        heads [rows, query_heads + 2 · kv_heads, size]: queries, keys, values; tables: cos and signed sin of every
        position [positions, size]; where [written] places in memory [2 · kv_heads, pool, size] of the first rows'
        keys and values; starts, lengths [written]: what each of these rows reads, its own included. Rows of length 0,
        and those not written, get zeros.
        """
        rows, turned, size = heads.shape
        kv_heads, written = (turned - query_heads) // 2, len(where)
        y = heads.new_zeros(rows, query_heads, size)
        self.functions.attention(
            heads.data_ptr(), rows, written, query_heads, kv_heads, size, tables[0].data_ptr(), tables[1].data_ptr(),
            positions.data_ptr(), where.data_ptr(), memory.data_ptr(), memory.shape[1], starts.data_ptr(),
            lengths.data_ptr(), scale, y.data_ptr(),
        )  # fmt: skip
        return y

    def add_adapters(self, y: Tensor, x: Tensor, down: Tensor, up: Tensor, strengths: Tensor, ends: Tensor) -> Tensor:
        """y + (x·Aᵀ ∘ strengths)·B, in place: y [rows, outputs], x [rows, inputs], strengths [rows, width].

        down, up: A [columns · members, inputs] and B [columns · members, outputs], of which each row holds what one
        column does for one member; ends [members]: where each member's outputs end.
        """
        strengths = strengths.contiguous()
        self.functions.adapters(
            x.data_ptr(), len(x), x.shape[1], down.data_ptr(), up.data_ptr(), strengths.data_ptr(), strengths.shape[1],
            len(ends), ends.data_ptr(), y.data_ptr(), y.shape[1],
        )  # fmt: skip
        return y


def open_kernels(config: Any, dtype: torch.dtype, device: torch.device, wanted: bool, say: Say) -> Kernels | None:
    """Kernels for a base, or None where there are none; on a CPU it is said which, and why."""
    if device.type != "cpu" or dtype != torch.bfloat16:
        return None
    if not wanted:
        say("kernels: none (KERNELS=0), torch computes everything")
        return None
    if reason := unfit(config):
        say(f"kernels: none ({reason}), torch computes everything")
        return None
    try:
        found, how = load()
    except NoKernels as error:
        say(f"kernels: none ({error}), torch computes everything")
        return None
    say(f"kernels: {'with tiles (AMX)' if found.tiles else 'in vectors'}, {how}")
    return found


def unfit(config: Any) -> str:
    """Why a base's shapes don't suit the kernels, or nothing."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for name, number, step in (
        ("hidden size", config.hidden_size, 32),
        ("MLP's size", config.intermediate_size, 32),
        ("size of a head", size, 32),
        ("vocabulary", config.vocab_size, 1 if config.tie_word_embeddings else 16),
    ):
        if number % step:
            return f"the base's {name} is {number}, no multiple of {step}"
    if config.vocab_size < 16:
        return f"the base's vocabulary is {config.vocab_size}, less than 16"
    return f"the base's heads have {size} numbers, more than 256" if size > 256 else ""


def find_compiler() -> str | None:
    """$CXX, or the system's."""
    return os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def compile_into(place: Path, compiler: str, flags: Sequence[str] = FLAGS) -> None:
    """A library of the kernels, made aside first. Raises NoKernels."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(prefix=".compile-", dir=place.parent) as aside:
            made = Path(aside) / place.name
            command = [compiler, *flags, str(SOURCE), "-o", str(made)]
            subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=True)
            made.replace(place)
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or ["it said nothing"]
        reason = next((line for line in said if "error" in line), said[-1])
        raise NoKernels(f"{compiler} did not compile them: {one_line(reason)[:200]}") from None
    except (OSError, subprocess.SubprocessError) as error:
        raise NoKernels(f"they could not be compiled: {error}") from None


@cache
def load() -> tuple[Kernels, str]:
    """The kernels, checked, and how they came. Raises NoKernels."""
    compiler = find_compiler()
    if compiler is None:
        raise NoKernels("there is no C++ compiler: install g++")
    place = cache_home() / "kernels" / f"{_key(compiler)}.so"
    how = "compiled before"
    if not place.is_file():
        started = time.perf_counter()
        compile_into(place, compiler)
        how = f"compiled for this processor in {time.perf_counter() - started:.1f} s"
    try:
        found = Kernels(ctypes.CDLL(str(place)))
    except (OSError, AttributeError) as error:
        raise NoKernels(f"what was compiled can't be loaded: {error}") from None
    _check(found)
    return found, how


def _key(compiler: str) -> str:
    """A name for what this compiler makes of the source on this processor."""
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise NoKernels(f"{compiler} does not run: {error}") from None
    processor = platform.machine() + platform.processor()
    if (listed := Path("/proc/cpuinfo")).is_file():
        lines = listed.read_text(errors="replace").splitlines()
        processor += "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
    sources = [path.read_bytes() for path in sorted(SOURCE.parent.iterdir()) if path.suffix in (".cpp", ".h")]
    parts = [*sources, " ".join(FLAGS).encode(), version.encode(), processor.encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]


def _check(kernels: Kernels) -> None:
    """A product with known sums, so that a compiler or processor that does otherwise is found before it answers."""
    x, weight = torch.arange(3 * 64).view(3, 64) % 7 - 3, torch.arange(48 * 64).view(48, 64) % 11 - 5
    found = kernels.product(x.bfloat16(), Matrix.dense(weight.bfloat16()), wide=True)
    if not torch.equal(found, (x @ weight.T).float()):
        raise NoKernels("what was compiled computes something else than it should")


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
