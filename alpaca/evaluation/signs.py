"""Signs of forgetting. The interval decides whether there is one, and only then the size decides the word."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from alpaca.evaluation.power import hidden_losses, is_chance
from alpaca.evaluation.results import Change, Drift, KindScore, Measured, Probing, Sample
from alpaca.words import are, plural, shown

# From where on something is forgotten a little, clearly, much:
LOSS_RISE = (0.0, 0.10, 0.30)  # rise of the general loss per token,
PROBES_LOST = (0.0, 0.15, 0.40)  # lost probes as a share of those that the base passed,
KIND_LOST = (0.0, 0.50, 2.0)  # or of those of one kind
DRIFTED = (0.0, 0.08, 0.25)  # answers that newly talk like the training data, as a share of all
KIND_CHANCE = 0.02  # for the worst of five kinds, of which one is soon bad by chance
FEWEST_DRIFTED = 2  # more answers that talk like the data than the base's are worth a word
KIND_NAMES = {
    "arithmetic": "arithmetic", "logic": "logic", "knowledge": "common knowledge", "format": "following a format",
    "identity": "saying what it is",
}  # fmt: skip
QUOTED = 45  # characters of a question or an answer


class Forgetting(IntEnum):
    """How much was forgotten. UNSURE: something is lost, but no more than chance may explain."""

    NOTHING = 0
    UNSURE = 1
    LITTLE = 2
    CLEAR = 3
    MUCH = 4


@dataclass(frozen=True)
class Sign:
    """One sign: how bad, the part of a sentence that says it, and what it might have missed, where it found nothing."""

    grade: Forgetting
    says: str
    missed: str = ""


def signs_of(measured: Measured) -> list[Sign]:
    """Small tests, those of the kind that lost most, general loss, answers that talk like the training data."""
    signs = [] if measured.probing is None else _probe_signs(measured.probing)
    signs.append(_loss_sign(measured.general))
    return signs if measured.drift is None else [*signs, _drift_sign(measured.drift)]


def _loss_sign(general: Change) -> Sign:
    gap = general.difference
    change = math.expm1(-gap.value) * 100
    where = f"the right answers to {plural(general.rows, 'general question')}"
    if gap.low <= 0 <= gap.high:
        half = math.expm1((gap.high - gap.low) / 2) * 100
        missed = f"a change below {max(half, 1):.0f} % on general questions"
        return Sign(Forgetting.NOTHING, f"{where} are as likely as before", missed)
    way = "less likely" if change < 0 else "likelier"
    says = f"{where} are, word by word, {max(abs(change), 1):.0f} % {way}"
    return Sign(_grade(gap.value, LOSS_RISE) if gap.value > 0 else Forgetting.NOTHING, says)


def _probe_signs(probing: Probing) -> list[Sign]:
    signs = [_tests_sign(probing)]
    worst = max(probing.kinds, key=lambda score: score.lost - score.won)
    if worst.lost > worst.won and not is_chance(worst.lost, worst.won, KIND_CHANCE):
        signs.append(Sign(_grade(worst.lost / worst.before, KIND_LOST), _of_kind(worst, probing)))
    return signs


def _tests_sign(probing: Probing) -> Sign:
    lost, won = probing.lost, probing.won
    if not lost:
        kept = "failed all of them" if not probing.before else f"passed {probing.before}, and none of these is lost"
        hidden = hidden_losses(won) if probing.before else probing.asked
        missed = f"a fall by {plural(hidden, 'test')} of {probing.asked}"
        return Sign(Forgetting.NOTHING, f"of {plural(probing.asked, 'small test')} the base {kept}", missed)
    says = f"{lost} of the {plural(probing.before, 'small test')} that the base passed {are(lost)} lost"
    says += _example(probing.examples)
    if won:
        says += f", {won} {'others' if won > 1 else 'other'} won"
    if lost > won and not is_chance(lost, won):
        return Sign(_grade(lost / probing.before, PROBES_LOST), says)
    return Sign(Forgetting.UNSURE, says)


def _of_kind(score: KindScore, probing: Probing) -> str:
    example = _example([sample for sample in probing.examples if sample.kind == score.kind])
    what = KIND_NAMES.get(score.kind, score.kind)
    of = f"{score.lost} of the {plural(score.before, 'test')} of {what} that the base passed"
    return f"{of} {are(score.lost)} lost{example}"


def _example(lost: Sequence[Sample]) -> str:
    """The first of the lost tests in a bracket."""
    if not lost:
        return ""
    asked, said = shown(lost[0].prompt, QUOTED), shown(lost[0].adapter, QUOTED)
    return f" (“{asked}” – “{said}”)" if said else f" (“{asked}” – no answer)"


def _drift_sign(drift: Drift) -> Sign:
    more = drift.after - drift.before
    says = f"{drift.after} of {drift.asked} answers to unrelated questions talk like your data"
    says += f" (the base: {drift.before})"
    if more < FEWEST_DRIFTED:
        return Sign(Forgetting.NOTHING, says)
    # Of answers that both or neither give in such words, nothing is learnt; where the same ones do, this is cautious.
    chance = is_chance(drift.after, drift.before)
    return Sign(Forgetting.UNSURE if chance else _grade(more / drift.asked, DRIFTED), says)


def _grade(value: float, thresholds: tuple[float, float, float]) -> Forgetting:
    """The word for something that is no chance."""
    return Forgetting(Forgetting.UNSURE + sum(value >= threshold for threshold in thresholds))
