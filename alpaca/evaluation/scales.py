"""Losses with the adapter at each scale: of held-out rows, of their answers after other questions, of general rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from alpaca.evaluation.budget import SWEPT, SWEPT_OTHERS
from alpaca.evaluation.gain import Answers, answers_of
from alpaca.evaluation.losses import RowLosses, Scored, row_losses
from alpaca.evaluation.results import ScalePoint, Sweep
from alpaca.evaluation.verdict import recommend_scale
from alpaca.prompts.encode import Encoded
from alpaca.prompts.foreign import ForeignRows


@dataclass(frozen=True)
class Rows:
    """What is measured at a scale; `foreign` are the answers of `domain` after other rows' questions."""

    domain: list[Encoded]
    foreign: ForeignRows
    general: list[Encoded]

    @property
    def tokens(self) -> int:
        """How many there are to go through."""
        return sum(map(len, (*self.domain, *self.foreign.rows, *self.general)))

    def at(self, scale: float) -> Rows:
        """Those that are measured at `scale`: fewer between the base and the whole adapter."""
        if scale in (0.0, 1.0):
            return self
        foreign = self.foreign.pick(self.foreign.chosen(SWEPT, SWEPT_OTHERS))
        return Rows(self.domain[:SWEPT], foreign, self.general[:SWEPT])


@dataclass(frozen=True)
class AtScale:
    """The losses of `rows` at one scale."""

    rows: Rows
    domain: RowLosses
    foreign: RowLosses
    general: RowLosses

    def swept(self) -> AtScale:
        """The same of the rows that are measured at every scale."""
        rows, chosen = self.rows.at(0.5), self.rows.foreign.chosen(SWEPT, SWEPT_OTHERS)
        return AtScale(rows, self.domain.first(SWEPT), self.foreign.pick(chosen), self.general.first(SWEPT))

    @property
    def answers(self) -> Answers | None:
        """The losses of the answers after their own questions and after others; None where there are no others."""
        if not self.rows.foreign.rows:
            return None
        return answers_of(self.domain.last_answers(self.rows.domain), self.foreign, self.rows.foreign)


def measure_at(model: Scored, rows: Rows, scale: float, done: Callable[[int], object]) -> AtScale:
    """Measure at `scale` what belongs to it; `done` is told of tokens. Raises NonFiniteLoss."""
    rows = rows.at(scale)
    domain, foreign, general = (
        row_losses(model, part, scale, done) for part in (rows.domain, rows.foreign.rows, rows.general)
    )
    return AtScale(rows, domain, foreign, general)


def sweep_of(points: dict[float, AtScale]) -> Sweep:
    """The losses over the scale, all of them on the rows that every scale has."""
    swept = {scale: point if scale not in (0.0, 1.0) else point.swept() for scale, point in sorted(points.items())}
    base = swept[0.0]
    found = [_point(scale, at, base) for scale, at in swept.items()]
    return Sweep(len(base.rows.domain), len(base.rows.general), found, recommend_scale(found))


def _point(scale: float, at: AtScale, base: AtScale) -> ScalePoint:
    domain = at.domain.mean if at.rows.domain else None
    now, before = at.answers, base.answers
    if now is None or before is None:
        return ScalePoint(scale, domain, at.general.mean)
    tokens = before.counts.sum()
    manner = (before.foreign - now.foreign).sum() / tokens
    gain = (before.own - now.own).sum() / tokens
    return ScalePoint(scale, domain, at.general.mean, float(manner), float(gain - manner))
