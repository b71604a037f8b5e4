"""A number with its unit, or a date, and when two of them say the same."""

from __future__ import annotations

from dataclasses import dataclass

from alpaca.evaluation.units import UNITS

Span = tuple[float, float]  # from, to; both the same for a single number
CLOSE = 0.02  # quantities in different units of the same kind agree within this share: people round when they convert
DAY, DATE, CLOCK = "day of a year", "date", "time of day"
KNOWN = {DAY, DATE, CLOCK, *(dimension for dimension, _ in UNITS.values())}


@dataclass(frozen=True)
class Quantity:
    """A number with its unit as `shown` in the text.

    `spans`: all that it may mean, in the first unit of `measures`, which is what the unit measures, or the word that
    follows, or nothing; `unit` is that as it stands, and `plain` the spans without it.
    """

    shown: str
    spans: tuple[Span, ...]
    measures: str = ""
    unit: str = ""
    plain: tuple[Span, ...] = ()

    def agrees(self, other: Quantity) -> bool:
        """Whether both may be the same. Where not both have a known unit, the bare numbers must be the same."""
        if self.measures == other.measures:
            close = 0.0 if self.unit == other.unit else CLOSE
            return any(_agree(a, b, close) for a in self.spans for b in other.spans)
        if self.measures in KNOWN and other.measures in KNOWN:
            return False
        return any(_agree(a, b, 0.0) and (a[1] - a[0] == b[1] - b[0]) for a in self._bare for b in other._bare)

    @property
    def _bare(self) -> tuple[Span, ...]:
        return self.plain or self.spans


def _agree(one: Span, other: Span, close: float) -> bool:
    """Whether a number lies in a range, or two ranges have half of the shorter one in common."""
    room = close * max(map(abs, (*one, *other))) + 1e-9
    shared = min(one[1], other[1]) - max(one[0], other[0])
    return shared >= min(one[1] - one[0], other[1] - other[0]) / 2 - room
