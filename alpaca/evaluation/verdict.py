"""From numbers to three sentences: what was learned, what was forgotten, what to do. Every threshold is here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from alpaca.evaluation.results import Change, Measured, Probing, ScalePoint, Sweep
from alpaca.words import joined

GAIN = 0.02  # loss per token by which held-out rows must at least improve
KEPT = 0.9  # share of the gain that the recommended scale keeps
# From where on something is forgotten a little, clearly, much:
LOSS_RISE = (0.03, 0.10, 0.30)  # rise of the general loss per token,
PROBES_LOST = (0.05, 0.10, 0.25)  # as a share of the probes that the base passed,
KIND_LOST = (0.30, 0.50, 2.0)  # or of those of one kind
FEWEST_LOST = 3  # probes; fewer are chance
DRIFTED = (0.03, 0.08, 0.25)  # answers that newly talk like the training data, as a share of all
FEWEST_DRIFTED = 2
KIND_NAMES = {
    "arithmetic": "arithmetic", "logic": "logic", "knowledge": "common knowledge", "format": "following a format",
    "identity": "saying what it is",
}  # fmt: skip
MOST_SIGNS = 2  # of forgetting that the verdict names
EASED = 0.6  # a smaller scale is worth naming if it leaves at most this share of the rise of the general loss
REPLAY, MOST_REPLAY = 0.1, 0.3  # the ratio that is suggested first, and the one beyond which it isn't raised


class Forgetting(IntEnum):
    """How much was forgotten."""

    NOTHING = 0
    LITTLE = 1
    CLEAR = 2
    MUCH = 3


HOW_MUCH = {
    Forgetting.LITTLE: "It forgot a little",
    Forgetting.CLEAR: "It clearly forgot something",
    Forgetting.MUCH: "It forgot much",
}


@dataclass(frozen=True)
class Verdict:
    """`learned` is None where it could not be measured. The sentences go together, in this order."""

    learned: bool | None
    forgetting: Forgetting
    improved: str
    forgotten: str
    advice: str

    @property
    def sentences(self) -> list[str]:
        return [self.improved, self.forgotten, self.advice]


def judge(measured: Measured, replay_ratio: float | None) -> Verdict:
    """The verdict on what was measured. `replay_ratio`: that of the run; None where it is not known."""
    learned = None if measured.domain is None else _learned(measured.domain)
    signs = signs_of(measured)
    forgetting = Forgetting(max(sign.grade for sign in signs))
    return Verdict(
        learned,
        forgetting,
        _improved(measured.domain, learned),
        _forgotten(signs, forgetting),
        _advice(learned, forgetting, measured.sweep, replay_ratio),
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


@dataclass(frozen=True)
class Sign:
    """One sign of forgetting: how bad, and the sentence part that says it."""

    grade: int
    says: str


def signs_of(measured: Measured) -> list[Sign]:
    """General loss, all probes, the kind of probes that lost most, answers that talk like the training data."""
    signs = [_loss_sign(measured.general)]
    if measured.probing is not None:
        signs += _probe_signs(measured.probing)
    if (drift := measured.drift) is not None and drift.after > drift.before:
        more = drift.after - drift.before
        says = f"{drift.after} of {drift.asked} answers to unrelated questions talk like your data"
        says += f" (the base: {drift.before})"
        signs.append(Sign(_grade(more / drift.asked, DRIFTED) if more >= FEWEST_DRIFTED else 0, says))
    return signs


def _loss_sign(general: Change) -> Sign:
    gap = general.difference
    change = math.expm1(-gap.value) * 100
    where = f"the right answers to {general.rows} general questions"
    if gap.low <= 0 <= gap.high or abs(change) < 1:
        return Sign(0, f"{where} are as likely as before")
    way = "less likely" if change < 0 else "likelier"
    return Sign(_grade(gap.value, LOSS_RISE), f"{where} are, word by word, {abs(change):.0f} % {way}")


def _probe_signs(probing: Probing) -> list[Sign]:
    def grade(before: int, after: int, thresholds: tuple[float, float, float]) -> int:
        return _grade((before - after) / before, thresholds) if before - after >= FEWEST_LOST else 0

    says = f"it passes {probing.after} of {probing.asked} small tests (the base: {probing.before})"
    signs = [Sign(grade(probing.before, probing.after, PROBES_LOST), says)]
    worst = max(probing.kinds, key=lambda score: score.before - score.after)
    if kind_grade := grade(worst.before, worst.after, KIND_LOST):
        what = KIND_NAMES.get(worst.kind, worst.kind)
        says = f"it passes {worst.after} of {worst.asked} tests of {what} (the base: {worst.before})"
        signs.append(Sign(kind_grade, says))
    return signs


def _grade(value: float, thresholds: tuple[float, float, float]) -> int:
    return sum(value >= threshold for threshold in thresholds)


def _learned(domain: Change) -> bool:
    return domain.difference.high < 0 and -domain.difference.value >= GAIN


def _improved(domain: Change | None, learned: bool | None) -> str:
    if domain is None:
        return "What it learned could not be measured, because no held-out rows of its own data are at hand."
    if not learned:
        return f"It did not learn your data: on {domain.rows} rows it had never seen, it is no better than the base."
    times = math.exp(min(-domain.difference.value, 50))
    much = f"{times:.1f} times as likely as" if times >= 1.95 else f"{(times - 1) * 100:.0f} % likelier than"
    return (
        f"It learned your data: on {domain.rows} rows it had never seen, each word (or piece of one) of the right "
        f"answers is {much} with the base."
    )


def _forgotten(signs: Sequence[Sign], forgetting: Forgetting) -> str:
    """The worst signs where there are any, else what is as it was; the rest is told further down the page."""
    if forgetting == Forgetting.NOTHING:
        return f"No forgetting was detected: {joined(sign.says for sign in signs)}."
    worst = sorted((sign for sign in signs if sign.grade), key=lambda sign: -sign.grade)[:MOST_SIGNS]
    return f"{HOW_MUCH[forgetting]}: {joined(sign.says for sign in worst)}."


def _advice(learned: bool | None, forgetting: Forgetting, sweep: Sweep | None, replay_ratio: float | None) -> str:
    if learned is False:
        return (
            "Look at the data (python -m alpaca.data FILE), then train longer (--num_epochs) or with a higher "
            "--learning_rate; this adapter is of no use."
        )
    scale = _easier_scale(sweep)
    now = f"adapter_scale {scale:g} keeps at least {KEPT:.0%} of what it learned and loses less" if scale else ""
    if forgetting >= Forgetting.CLEAR:
        again = _train_again(replay_ratio)
        return f"{again}; until then, {now}." if now else f"{again}."
    if forgetting == Forgetting.LITTLE and now:
        return f"If that matters, {now}; otherwise use it as it is."
    return "Use it as it is."


def _train_again(replay_ratio: float | None) -> str:
    if not replay_ratio:
        return f"Train again with --replay_ratio {REPLAY:g}, which mixes general rows in"
    if replay_ratio < MOST_REPLAY:
        return f"Train again with --replay_ratio {min(MOST_REPLAY, 2 * replay_ratio):g} instead of {replay_ratio:g}"
    return "Train again for fewer epochs (--num_epochs) or with a lower --learning_rate"


def _easier_scale(sweep: Sweep | None) -> float | None:
    """The recommended scale, where it is below 1 and eases the forgetting enough to be worth a word."""
    if sweep is None or sweep.recommended is None or sweep.recommended == 1.0:
        return None
    general = {point.scale: point.general for point in sweep.points}
    rise, eased = general[1.0] - general[0.0], general[sweep.recommended] - general[0.0]
    return sweep.recommended if rise > 0 and eased <= EASED * rise else None
