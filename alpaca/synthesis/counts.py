"""Counts by reason, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def listed(counts: Mapping[str, int], order: Sequence[str]) -> str:
    """12 too similar, 3 cut off: those of `order` that are not 0, the commonest first."""
    found = sorted((name for name in order if counts.get(name)), key=lambda name: -counts[name])
    return ", ".join(f"{counts[name]:,} {name}" for name in found)
