"""Products of a few rows with a base's matrices, by the engine's kernels and in every form that stock torch has.

    python benchmarks/products.py                  shapes of the default base
    python benchmarks/products.py --rows 1 8 48    other numbers of rows

Each matrix is there thirty times, as in thirty layers, so that none is still in the processor's nearest memory when its
turn comes again. Forms take turns; the median counts. Microseconds, and the ratio to torch's linear().
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from alpaca.serving.kernels import Matrix, NoKernels, load  # noqa: E402
from alpaca.serving.product import product  # noqa: E402
from alpaca.serving.quantized import QUANTIZED, Int4Weight, Int8Weight  # noqa: E402

SHAPES = {"q, k, v": (960, 576), "o": (576, 576), "gate, up": (3072, 576), "down": (576, 1536), "head": (49152, 576)}
COPIES = 30


def seconds(form: Callable[[int], object], copies: int) -> float:
    started = time.perf_counter()
    for number in range(copies):
        form(number)
    return (time.perf_counter() - started) / copies


def forms(weights: list[Tensor], rows: int) -> dict[str, Callable[[int], object]]:
    """Name → the product with matrix number n."""
    x = torch.randn(rows, weights[0].shape[1]).bfloat16()
    wide, eight, four = [w.float() for w in weights], [Int8Weight(w) for w in weights], [Int4Weight(w) for w in weights]
    by_torch: dict[str, Callable[[int], object]] = {
        "linear": lambda n: functional.linear(x, weights[n]),
        "W·xᵀ": lambda n: product(x, weights[n]),
        "fp32": lambda n: functional.linear(x.float(), wide[n]),
        "int8": lambda n: eight[n].product(x),
        "int4": lambda n: four[n].product(x),
    }
    return by_torch | by_kernels(x, weights)


def by_kernels(x: Tensor, weights: list[Tensor]) -> dict[str, Callable[[int], object]]:
    """The same by the engine's kernels, where they can be made."""
    try:
        kernels, _ = load()
    except NoKernels as error:
        print(f"kernels: none ({error})", file=sys.stderr)
        return {}
    made: dict[str, list[Matrix]] = {"bf16": [Matrix.dense(weight) for weight in weights]}
    for bits in QUANTIZED if kernels.tiles else ():
        quantized = [QUANTIZED[bits](weight, for_kernels=True).matrix for weight in weights]
        made[bits] = [matrix for matrix in quantized if matrix is not None]

    def form(matrices: list[Matrix]) -> Callable[[int], object]:
        return lambda n: kernels.product(x, matrices[n])

    return {f"kernels {bits}": form(matrices) for bits, matrices in made.items()}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 128])
    parser.add_argument("--copies", type=int, default=COPIES, help="of each layer's matrix (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    options = parser.parse_args()
    for name, shape in SHAPES.items():
        copies = options.copies if shape[0] < 10_000 else 1
        weights = [torch.randn(shape).bfloat16() for _ in range(copies)]
        for rows in options.rows:
            found: dict[str, list[float]] = {}
            contenders = forms(weights, rows)
            for _ in range(options.rounds):
                for form, run in contenders.items():
                    found.setdefault(form, []).append(seconds(run, copies))
            medians = {form: statistics.median(times) for form, times in found.items()}
            cells = "  ".join(f"{f} {t * 1e6:7.0f} ({t / medians['linear']:.2f})" for f, t in medians.items())
            print(f"{name:8} {shape[0]:5} × {shape[1]:4}  rows {rows:3}  {cells}", flush=True)


if __name__ == "__main__":
    main()
