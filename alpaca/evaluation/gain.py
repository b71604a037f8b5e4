"""What a gain is made of: the manner in which such answers are written, and the matter that their questions tell.

Let a be a row's answer, q its own question, q' the questions of other rows, L₀ and L₁ the summed losses of the base and
of the adapter. F = mean over q' of L(a | q') is the loss of the answer after questions that are not its own. Then

    L₀(a | q) − L₁(a | q)  =  F₀ − F₁  +  (F₁ − L₁(a | q)) − (F₀ − L₀(a | q))
            gain           =  manner   +               matter

F − L(a | q) is log p(a | q) / p(a), the pointwise mutual information of question and answer (Church and Hanks, "Word
Association Norms, Mutual Information, and Lexicography", 1990), up to how well a few other questions stand for "any".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alpaca.evaluation.bootstrap import paired_difference
from alpaca.evaluation.losses import RowLosses
from alpaca.evaluation.results import GainParts
from alpaca.prompts.encode import Encoded
from alpaca.prompts.foreign import ForeignRows, has_question
from alpaca.words import plural


@dataclass(frozen=True)
class Answers:
    """The losses of the answers of n rows at one scale of the adapter, float64 (n,) each: `own` after their own
    questions, `foreign` the mean after others', `least` the lowest of those; `counts` are their tokens."""

    own: np.ndarray
    foreign: np.ndarray
    least: np.ndarray
    counts: np.ndarray

    @property
    def told(self) -> float:
        """The share of answers that are likeliest after their own questions."""
        return float((self.own < self.least).mean())

    @property
    def foreign_mean(self) -> float:
        """Loss per token after others' questions."""
        return float(self.foreign.sum() / self.counts.sum())


def answers_of(own: RowLosses, foreign: RowLosses, rows: ForeignRows) -> Answers:
    """`own`: the last answers' losses of all rows; `foreign`: the losses of `rows`. Only rows that are among both."""
    places = rows.answers
    by_row = [foreign.sums[rows.places == place] for place in places]
    return Answers(
        own.sums[places],
        np.array([losses.mean() for losses in by_row]),
        np.array([losses.min() for losses in by_row]),
        own.counts[places],
    )


def gain_parts(before: Answers, after: Answers, rows: ForeignRows) -> GainParts:
    """Manner and matter of a gain in loss per token, with their intervals over rows."""
    counts = before.counts.tolist()
    manner = paired_difference(after.foreign.tolist(), before.foreign.tolist(), counts)
    was, now = ((found.foreign - found.own).tolist() for found in (before, after))
    return GainParts(
        rows=len(counts),
        others=int(rows.ranks.max()) + 1,
        manner=manner,
        matter=paired_difference(was, now, counts),
        foreign_before=before.foreign_mean,
        foreign_after=after.foreign_mean,
        told_before=before.told,
        told_after=after.told,
    )


def notes_on(rows: Sequence[Encoded], foreign: ForeignRows, others: int, wanted: int) -> list[str]:
    """What is to be said of a split of the gain on `rows`: why it is left out, or whom it leaves out.

    `others`: questions that the time allowed for each row, of `wanted`.
    """
    if not rows:
        return ["Manner and matter are not told apart: there are no held-out rows."]
    taking_part = len(foreign.answers)
    if not taking_part:
        why = "there is only one held-out row" if len(rows) == 1 else (
            "the held-out rows have no questions" if not any(map(has_question, rows)) else
            "no held-out row has another question beside it, with another answer, that fits in cutoff_len"
        )  # fmt: skip
        return [f"Manner and matter are not told apart: {why}."]
    notes = []
    if left_out := len(rows) - taking_part:
        notes.append(f"{plural(left_out, 'held-out row')} without a question, or without another one that could stand "
                     "before the answer, could not be told apart into manner and matter.")  # fmt: skip
    if any(len(row.trained) > 1 for row in rows):
        notes.append("Of conversations, the last answer is told apart into manner and matter.")
    if others < wanted:
        notes.append(f"For want of time each answer was asked after {plural(others, 'other question')}, not {wanted}.")
    return notes
