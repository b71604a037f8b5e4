"""Measurements for tests of what is said about them: a good adapter, changed where a test wants it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alpaca.evaluation.bootstrap import Interval
from alpaca.evaluation.results import (
    Change,
    Drift,
    Facts,
    GainParts,
    KindScore,
    Learnt,
    LearntRow,
    Measured,
    Probing,
    Sample,
    ScalePoint,
    Sweep,
    Tally,
)

HOSTILE = "<script>alert(1)</script> </div> \u202eevil\u202c \x00\x1b[31m & \"quoted\" 羊驼 'x' \ud800"


def change(before: float, after: float, spread: float = 0.01, rows: int = 40) -> Change:
    gap = after - before
    return Change(rows, 100 * rows, before, after, Interval(gap, gap - spread, gap + spread))


def probing(*kinds: tuple[Any, ...], examples: list[Sample] | None = None) -> Probing:
    """`kinds`: name, asked, passed by the base, by the adapter, and lost, which is else their difference."""
    scores = [KindScore(*kind, *([max(0, kind[2] - kind[3])] if len(kind) == 4 else [])) for kind in kinds]
    asked = sum(score.asked for score in scores)
    gap = sum(score.after - score.before for score in scores) / asked
    lost, won = sum(score.lost for score in scores), sum(score.won for score in scores)
    return Probing(scores, Interval(gap, gap - 0.05, gap + 0.05), lost, won, examples or [])


def gain(manner: float, matter: float, spread: float = 0.05) -> GainParts:
    parts = (Interval(value, value - spread, value + spread) for value in (manner, matter))
    return GainParts(40, 4, *parts, 4.0, 4.0 - manner, 0.8, 1.0)


def facts(kept: int = 0, missing: int = 0, invented: int = 0, contradicted: int = 0, checked: int = 12) -> Facts:
    return Facts(12, checked, Tally(0, kept + missing, 5, 5), Tally(kept, missing, invented, contradicted), 0)


def drift(asked: int, before: int, after: int, worst: list[Sample] | None = None) -> Drift:
    return Drift(asked, before, after, 0.1, ["cria", "<b>"], 40, 0.8, 0.01, worst or [])


def learnt(by_heart: Sequence[int] = (), not_learnt: Sequence[int] = (), of: int = 200) -> Learnt:
    heart = [LearntRow(row, 3.0, 1.0, 2.5, 0.5) for row in by_heart]
    missed = [LearntRow(row, 7.0, 6.5, 5.9, 0.0) for row in not_learnt]
    return Learnt(200, of, 0.84, heart, missed, 24, 0)


def sweep(*points: tuple[float, float | None, float], recommended: float | None = None) -> Sweep:
    return Sweep(16, 16, [ScalePoint(*point) for point in points], recommended)


def measured(**changes: Any) -> Measured:
    """Learned much, of which nothing is known to be manner or matter, and forgot nothing."""
    given: dict[str, Any] = {
        "general": change(2.0, 2.0),
        "domain": change(3.0, 2.0),
        "probing": probing(("arithmetic", 25, 20, 20), ("identity", 12, 10, 10)),
        "drift": drift(100, 1, 1),
        "sweep": sweep((0.0, 3.0, 2.0), (0.5, 2.3, 2.0), (1.0, 2.0, 2.0), recommended=1.0),
    }
    return Measured(**(given | changes))
