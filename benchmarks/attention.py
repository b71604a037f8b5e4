"""Forward and backward of one example's attention on this CPU: matrix products against scaled_dot_product_attention.

    python benchmarks/attention.py
    python benchmarks/attention.py --lengths 4096     another length

The shapes are SmolLM2-135M's. alpaca/packed/attention.py takes matrix products up to SHORT tokens because of this.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor
from torch.nn import functional

from alpaca.packed.attention import ShortAttention

HEADS, KV_HEADS, HEAD_DIM = 9, 3, 64
LENGTHS = (32, 64, 128, 256, 512, 1024, 2048)


def milliseconds(attend: Callable[[], Tensor], grad: Tensor, repeats: int = 15) -> float:
    """The quickest of several forward and backward passes."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        attend().backward(grad)
        best = min(best, time.perf_counter() - start)
    return best * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--lengths", nargs="+", type=int, default=LENGTHS, metavar="TOKENS", help="default: %(default)s"
    )
    options = parser.parse_args()
    print(f"{'tokens':>7}{'SDPA ms':>10}{'products ms':>13}{'ratio':>7}")
    for length in options.lengths:
        query, key, value = (
            torch.randn(1, heads, length, HEAD_DIM, dtype=torch.bfloat16, requires_grad=True)
            for heads in (HEADS, KV_HEADS, KV_HEADS)
        )
        grad = torch.randn_like(query)
        scale = HEAD_DIM**-0.5

        def sdpa(q: Tensor = query, k: Tensor = key, v: Tensor = value, s: float = scale) -> Tensor:
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=s, enable_gqa=True)

        def products(q: Tensor = query, k: Tensor = key, v: Tensor = value, s: float = scale) -> Tensor:
            out: Tensor = ShortAttention.apply(q, k, v, s)
            return out

        ours, theirs = milliseconds(products, grad), milliseconds(sdpa, grad)
        print(f"{length:>7}{theirs:>10.2f}{ours:>13.2f}{theirs / ours:>7.1f}", flush=True)


if __name__ == "__main__":
    main()
