"""What an adapter gained on held-out rows, and of which kind: the manner of the answers, or their matter."""

from __future__ import annotations

import math
from enum import StrEnum

from alpaca.evaluation.power import likelier
from alpaca.evaluation.results import Change, GainParts, Measured
from alpaca.words import are, plural

GAIN = 0.02  # loss per token by which held-out rows must at least improve


class Gained(StrEnum):
    """What was gained. UNSPLIT: something, but manner was not told from matter; UNKNOWN: no held-out rows."""

    UNKNOWN = "unknown"
    NOTHING = "nothing"
    UNSPLIT = "unsplit"
    MANNER = "manner"
    MOSTLY_MANNER = "mostly manner"
    MATTER = "matter"


def gained(measured: Measured) -> Gained:
    """By the intervals: what may be chance was not gained."""
    if measured.domain is None:
        return Gained.UNKNOWN
    gap = measured.domain.difference
    if gap.high >= 0 or -gap.value < GAIN:
        return Gained.NOTHING
    if measured.gain is None:
        return Gained.UNSPLIT
    if measured.gain.matter.low <= 0:
        return Gained.MANNER
    return Gained.MATTER if matter_share(measured.gain) >= 0.5 else Gained.MOSTLY_MANNER


def matter_share(gain: GainParts) -> float:
    """The share of the gain that is matter, from 0 to 1."""
    manner, matter = max(0.0, gain.manner.value), max(0.0, gain.matter.value)
    return matter / (manner + matter) if manner + matter else 0.0


def say_gained(measured: Measured, kind: Gained) -> str:
    """The verdict's first sentence."""
    domain = measured.domain
    if domain is None:
        return "What it learned could not be measured, because no held-out rows of its own data are at hand."
    if measured.of_text:
        return _say_of_text(domain, kind)
    if kind == Gained.NOTHING:
        return (
            f"It did not learn your answers: those of {plural(domain.rows, 'row')} it had never seen are no likelier "
            f"than with the base{_unseen(domain)}."
        )
    times = f"the right answers of {plural(domain.rows, 'unseen row')} became {_times(domain)}, word by word"
    if kind == Gained.MANNER:
        return (
            f"It learned only how your answers are written, not what they say: {times}, but as much so after the "
            "question of another row."
        )
    if measured.gain is None:
        return f"It learned your data: {times}."
    matter = about(matter_share(measured.gain))
    manner = about(1 - matter_share(measured.gain))
    if kind == Gained.MOSTLY_MANNER:
        return f"It learned how your answers are written ({manner} of the gain) more than what they say: {times}."
    return f"It learned what your answers say ({matter} of the gain), and how they are written: {times}."


def _say_of_text(domain: Change, kind: Gained) -> str:
    parts = f"{plural(domain.rows, 'part')} of it that it had never seen"
    if kind == Gained.NOTHING:
        return (
            f"It did not learn your text: {parts} {are(domain.rows)} no likelier than with the base{_unseen(domain)}."
        )
    return f"It learned your text: {parts} became {_times(domain)}, word by word."


def about(share: float) -> str:
    """A share for people: 79.4 % is about 80 %."""
    return f"{5 * round(20 * share)} %"


def _times(domain: Change) -> str:
    """How much likelier the right answers are: each token, on average."""
    times = math.exp(min(-domain.difference.value, 50))
    return f"{times:.1f} times as likely" if times >= 1.95 else f"{(times - 1) * 100:.0f} % likelier"


def _unseen(domain: Change) -> str:
    """What so few rows could have hidden, where nothing was found."""
    half = (domain.difference.high - domain.difference.low) / 2
    return f" (so few rows would not show a gain below {likelier(half)})" if half >= GAIN else ""
