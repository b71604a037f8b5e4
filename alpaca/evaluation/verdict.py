"""From numbers to three sentences: what was learned, what was forgotten, what to do, and how good that is in all.

`gained.py`, `signs.py` and `advice.py` have a sentence each, with the thresholds that it rests on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from alpaca.evaluation.advice import KEPT, advise, hints
from alpaca.evaluation.gained import GAIN, Gained, gained, say_gained
from alpaca.evaluation.history import History
from alpaca.evaluation.results import Facts, Measured, ScalePoint
from alpaca.evaluation.signs import Forgetting, Sign, signs_of
from alpaca.words import joined, plural

MOST_SIGNS = 2  # of forgetting that the verdict names
FEWEST_CHECKED = 8  # answers, each with something that was checked and holds: fewer prove nothing
GOOD, MIXED, BAD = "good", "mixed", "bad"
HOW_MUCH = {
    Forgetting.UNSURE: "It may have forgotten something",
    Forgetting.LITTLE: "It forgot a little",
    Forgetting.CLEAR: "It clearly forgot something",
    Forgetting.MUCH: "It forgot much",
}


@dataclass(frozen=True)
class Verdict:
    """`learned` is None where it could not be measured. The sentences go together, in this order.

    `mark`: good only where nothing is held against it and nothing was left untested; `hints`: what would make it
    better; `tested` and `untested`: what the verdict rests on, and what it leaves open.
    """

    learned: bool | None
    gained: Gained
    forgetting: Forgetting
    improved: str
    forgotten: str
    advice: str
    mark: str
    hints: list[str] = field(default_factory=list)
    tested: list[str] = field(default_factory=list)
    untested: list[str] = field(default_factory=list)

    @property
    def sentences(self) -> list[str]:
        return [self.improved, self.forgotten, self.advice]


def judge(measured: Measured, replay_ratio: float | None, history: History | None = None) -> Verdict:
    """The verdict on what was measured. `replay_ratio`: that of the run; None where it is not known."""
    kind, signs = gained(measured), signs_of(measured)
    forgetting = max(sign.grade for sign in signs)
    untested = _untested(measured)
    return Verdict(
        learned=None if kind == Gained.UNKNOWN else kind != Gained.NOTHING,
        gained=kind,
        forgetting=forgetting,
        improved=say_gained(measured, kind),
        forgotten=_forgotten(signs, forgetting),
        advice=advise(measured, kind, forgetting, proved=not untested),
        mark=_mark(kind, forgetting, proved=not untested),
        hints=hints(measured, kind, forgetting, history or History(), replay_ratio),
        tested=_tested(measured),
        untested=untested,
    )


def recommend_scale(points: Sequence[ScalePoint]) -> float | None:
    """Of the scales that keep at least 90 % of the domain gain of scale 1, the one with the lowest general loss.

    None where the domain was not measured or nothing was gained.
    """
    by_scale = {point.scale: point for point in points}
    base, full = by_scale[0.0].domain, by_scale[1.0].domain
    if base is None or full is None or base - full < GAIN:
        return None
    keeping = [point for point in points if point.domain is not None and base - point.domain >= KEPT * (base - full)]
    return min(keeping, key=lambda point: (point.general, -point.scale)).scale


def _forgotten(signs: Sequence[Sign], forgetting: Forgetting) -> str:
    """The worst signs where there are any, else what is as it was, with what so few rows and tests could hide."""
    if forgetting == Forgetting.NOTHING:
        missed = joined(sign.missed for sign in signs if sign.missed)
        hidden = f" So few could hide {missed}." if missed else ""
        return f"Nothing was found to be forgotten: {joined(sign.says for sign in signs)}.{hidden}"
    worst = sorted((sign for sign in signs if sign.grade), key=lambda sign: -sign.grade)
    told = [sign for sign in worst if sign.grade > Forgetting.UNSURE][:MOST_SIGNS] or worst[:1]
    chance = ", which may be chance" if forgetting == Forgetting.UNSURE else ""
    return f"{HOW_MUCH[forgetting]}: {joined(sign.says for sign in told)}{chance}."


def _mark(kind: Gained, forgetting: Forgetting, *, proved: bool) -> str:
    if kind == Gained.NOTHING or forgetting == Forgetting.MUCH:
        return BAD
    whole = kind in (Gained.MATTER, Gained.MOSTLY_MANNER) and forgetting == Forgetting.NOTHING
    return GOOD if whole and proved else MIXED


def _tested(measured: Measured) -> list[str]:
    found = []
    if measured.domain is not None:
        what = f"{plural(measured.domain.rows, 'held-out part')} of your text" if measured.of_text else (
            f"the right answers of {plural(measured.domain.rows, 'held-out row')}"
        )  # fmt: skip
        found.append(f"how likely {what} are")
    if measured.gain is not None:
        found.append("how much of that is manner, and how much matter")
    if (facts := measured.facts) is not None:
        found.append(
            f"numbers, names, yes and no in {plural(facts.answers, 'answer')}, against those in {facts.checked} of the "
            "references"
        )
    found.append(f"how likely the right answers to {plural(measured.general.rows, 'general question')} are")
    if measured.probing is not None:
        found.append(f"{plural(measured.probing.asked, 'small question')} whose answers a program can check")
    if measured.drift is not None:
        found.append(f"whether {plural(measured.drift.asked, 'answer')} to unrelated questions talk like your data")
    return found


def _untested(measured: Measured) -> list[str]:
    found = []
    if not _proved(measured.facts):
        found.append(_unread(measured.facts))
    if measured.domain is None:
        found.append("whether it learned anything")
    elif measured.gain is None and not measured.of_text:
        found.append("whether it learned what the answers say, or only how they are written")
    if measured.probing is None:
        found.append("whether it still answers simple questions")
    if measured.drift is None:
        found.append("whether it answers everything with its own subject")
    return found


def _unread(facts: Facts | None) -> str:
    """That truth was not tested, and what the check of numbers and names came to instead."""
    if facts is None:
        return "whether what its answers say is true"
    found = "whether what its answers say is true: only their numbers and names were compared with those of your rows"
    if facts.adapter.expected:
        found += f", of which they have {facts.adapter.kept} of {facts.adapter.expected}"
        found += f" (the base: {facts.base.kept})"
    return found


def _proved(facts: Facts | None) -> bool:
    """Whether there was something to check in every answer, and all of it is as in the references."""
    if facts is None or facts.checked < max(FEWEST_CHECKED, facts.answers):
        return False
    return facts.adapter.missing == facts.adapter.wrong == 0
