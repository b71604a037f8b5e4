"""How long a run takes with all that belongs to it, said as a range: before anything is loaded, and again from the
pace of the trial."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from alpaca.words import clock, plural

EVALUATIONS = 8  # in a run, where they are not too close together or too costly
APART, FARTHEST = 5, 200  # steps between two of them: closer tells nothing new; farther, a crash costs much
SHARE = 0.2  # of the steps' time that evaluations may take
FORWARD = 0.5  # what a token costs in an evaluation, where forward and backward through a frozen base are 1
ANSWERED = 3.0  # what a token of the base's own answers costs on the same scale, as measured on a CPU
CHECKPOINT_RATE = 200e6  # bytes per second at which a checkpoint is written
REPORT_SECONDS = 60.0  # what a report may take at least, however short the training is
BEFORE, AFTER_TRIAL = (0.6, 1.6), (0.8, 1.3)  # how far off the parts but for the report may be, as factors


def evaluation_steps(steps: int, tokens: int, validation: int) -> int:
    """Steps between evaluations of `validation` tokens, in a run of `steps` steps over `tokens` tokens."""
    affordable = math.ceil(FORWARD * validation * steps / (SHARE * max(1, tokens)))
    return max(1, min(steps, max(APART, min(FARTHEST, steps // EVALUATIONS), affordable)))


@dataclass(frozen=True)
class Forecast:
    """What there is to do in a run, in tokens, bytes and seconds."""

    tokens: int
    trial_tokens: int
    validation_tokens: int
    evaluations: int  # besides the one of the base before, and the one of the finished adapter
    checkpoints: int
    checkpoint_bytes: int
    report: float  # seconds at most
    token_seconds: float
    answer_tokens: int = 0  # of the base's own answers, at most; those that were made before are among them
    taught_tokens: int = 0  # of those that the base reads once more as a teacher
    trial_taught: int = 0  # the same of the trial
    spread: tuple[float, float] = BEFORE
    tried: bool = False

    def after_trial(self, seconds: float, evaluation: float | None) -> Forecast:
        """The same at the pace of the trial, which took `seconds`, and of the base's own evaluation, if there was one.
        The quicker counts: what is done first in a process takes longer."""
        paces = [seconds / max(1, self.trial_tokens + FORWARD * self.trial_taught)]
        if evaluation is not None and self.validation_tokens:
            paces.append(evaluation / (FORWARD * self.validation_tokens))
        return dataclasses.replace(self, token_seconds=min(paces), spread=AFTER_TRIAL, tried=True)

    def parts(self) -> dict[str, float]:
        """Seconds by part, the report left out."""
        evaluations = self.evaluations + 2 if self.validation_tokens else 0
        answers = ANSWERED * self.answer_tokens * self.token_seconds
        trial = self.trial_tokens + FORWARD * self.trial_taught
        return {
            **({"the base's own answers": answers} if answers else {}),
            "steps": (self.tokens + FORWARD * self.taught_tokens) * self.token_seconds,
            **({} if self.tried else {"trial": trial * self.token_seconds}),
            plural(evaluations, "evaluation"): evaluations * self.validation_tokens * FORWARD * self.token_seconds,
            plural(self.checkpoints, "checkpoint"): self.checkpoints * self.checkpoint_bytes / CHECKPOINT_RATE,
        }

    def range(self) -> tuple[float, float]:
        """Seconds at least and at most."""
        work = sum(self.parts().values())
        return work * self.spread[0] + self.report / 2, work * self.spread[1] + self.report

    def line(self) -> str:
        parts = [f"{part} {clock(seconds)}" for part, seconds in self.parts().items()]
        if self.report:
            parts.append(f"report up to {clock(self.report)}")
        least, most = self.range()
        after = "at the pace of the trial, " if self.tried else ""
        return f"{after}{clock(least)} to {clock(most)} in all: {', '.join(parts)}"


def report_seconds(budget: float, training: float) -> float:
    """What the report may take: a share of the training's seconds, and some in any case; 0 without a report."""
    return max(REPORT_SECONDS, budget * training) if budget else 0.0
