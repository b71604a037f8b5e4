"""How long rows are, as percentiles: one definition for the plan, the check of a file and the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

PERCENTS = (50, 75, 90, 95, 99, 100)


def percentiles(lengths: Sequence[int] | np.ndarray, percents: Sequence[int] = PERCENTS) -> dict[int, int]:
    """Percent → the least length in `lengths` that at least this share of them does not exceed; {} without lengths.

    It is always the length of a row, never one between two (the inverted distribution function): the median of ten
    rows is the fifth.
    """
    import numpy as np

    if not len(lengths):
        return {}
    found = np.percentile(lengths, percents, method="inverted_cdf")
    return {percent: int(length) for percent, length in zip(percents, found, strict=True)}
