"""Everything that a report says, before it is written as a page and as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alpaca.evaluation.facts import DataFacts, RunFacts
from alpaca.evaluation.history import History
from alpaca.evaluation.results import Measured
from alpaca.evaluation.verdict import Verdict


@dataclass(frozen=True)
class Findings:
    """All that a page shows. `figures`: PNG bytes by name; `seconds`: what the making took."""

    name: str
    made: str
    seconds: float
    verdict: Verdict
    measured: Measured
    history: History
    data: DataFacts
    run: RunFacts
    figures: Mapping[str, bytes]
    on_top: Sequence[str] = ()
    """Of an adapter that was trained on top of another: what it was, and what is measured of both."""
