"""What so few rows or tests could not have shown: the smallest effect that would have been seen, in words."""

from __future__ import annotations

import math

from alpaca.evaluation.bootstrap import Interval
from alpaca.evaluation.results import Probing
from alpaca.words import plural

CHANCE = 0.05  # a difference that chance alone makes as often as this, in one of both directions, is no finding


def sign_test(lost: int, won: int) -> float:
    """How often chance alone divides `lost + won` changed tests at least as unevenly, in either direction.

    The exact sign test, which is McNemar's for pairs that pass or fail: tests that came out the same say nothing.
    """
    changed, fewer = lost + won, min(lost, won)
    tail = sum(math.comb(changed, number) for number in range(fewer + 1)) / 2**changed
    return min(1.0, 2 * tail)


def is_chance(lost: int, won: int, chance: float = CHANCE) -> bool:
    """Whether chance alone explains the difference well enough."""
    return sign_test(lost, won) > chance


def hidden_losses(won: int) -> int:
    """The most tests that may be lost, beside `won` that are won, while it still looks like chance."""
    lost = won
    while is_chance(lost + 1, won):
        lost += 1
    return lost


def hidden_by_tests(probing: Probing) -> str:
    """A sentence on the largest fall that these tests could hide."""
    if not probing.before:
        return (
            f"The base passed none of the {plural(probing.asked, 'test')}, so they can't show that something was lost."
        )
    hidden = hidden_losses(probing.won) - probing.won
    if hidden >= probing.before:
        return f"So few tests can't show forgetting: even if all {probing.before} were lost, it could be chance."
    points = 100 * hidden / probing.asked + 1e-9  # 12.5 is about 13
    beside = f" beside the {probing.won} that were won" if probing.won else ""
    return (
        f"With {probing.asked} tests, a fall of up to {plural(hidden, 'test')} ({points:.0f} points) could hide: "
        f"fewer than {hidden_losses(probing.won) + 1} lost ones{beside} may be chance."
    )


def hidden_by_rows(interval: Interval, rows: int) -> str:
    """A sentence on the smallest change of the loss that these rows would have shown: half the interval's width."""
    half = (interval.high - interval.low) / 2
    return (
        f"With {plural(rows, 'row')}, a change of the loss by less than about {half:.2f} (answers {likelier(half)} "
        "likelier or less likely, word by word) would not have been seen."
    )


def hidden_by_answers(asked: int, before: int) -> str:
    """A sentence on how many answers would have had to change in one direction to be seen, where `before` were so."""
    needed = hidden_losses(before) + 1 - before
    if needed > asked - before:
        return f"{plural(asked, 'answer')} are too few to show any such change."
    return f"Of {asked} answers, fewer than {needed} more such ones may be chance."


def likelier(loss: float) -> str:
    """A difference of loss per token as a change of the likelihood: 0.05 → 5 %."""
    return f"{math.expm1(min(loss, 50)) * 100:.0f} %"
