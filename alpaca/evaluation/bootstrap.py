"""How sure a measured difference is: the interval that resampling the rows gives (Efron & Tibshirani, 1993, ch. 13)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES, LEVEL, SEED = 1_000, 0.95, 0
AT_ONCE = 1 << 22  # numbers drawn at a time


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and the range that holds it in 95 of 100 draws of other rows of the same kind."""

    value: float
    low: float
    high: float


def paired_difference(before: Sequence[float], after: Sequence[float], weights: Sequence[float]) -> Interval:
    """The difference of two weighted means over the same rows, (Σ after − Σ before) / Σ weights.

    `before`, `after`: sums of each row, such as its summed loss; `weights`: what they are sums over, such as its
    tokens. Rows are drawn with replacement 1,000 times by a fixed seed, each with its before, after and weight.
    Raises ValueError without a row.
    """
    change = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    weight = np.asarray(weights, dtype=np.float64)
    rows = len(change)
    if not rows:
        raise ValueError("no rows to compare")
    draw = np.random.default_rng(SEED)
    means: list[np.ndarray] = []
    step = max(1, AT_ONCE // rows)
    for start in range(0, RESAMPLES, step):
        picked = draw.integers(0, rows, (min(step, RESAMPLES - start), rows))
        means.append(change[picked].sum(axis=1) / weight[picked].sum(axis=1))
    found = np.concatenate(means)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(change.sum() / weight.sum()), float(low), float(high))
