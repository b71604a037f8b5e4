"""How many rows a report can afford: all of them where time allows, else what fits, and never fewer than is useful."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)
FEW_SCALES = (0.0, 0.5, 1.0)
SWEPT = 64  # rows of each set that are measured at scales other than 0 and 1
OTHERS, FEW_OTHERS, LEAST_OTHERS = 4, 2, 1  # questions of other rows that each held-out answer is asked after
SWEPT_OTHERS = 2  # of those, at scales other than 0 and 1
STAGES = ((SCALES, OTHERS), (SCALES, FEW_OTHERS), (FEW_SCALES, FEW_OTHERS), (FEW_SCALES, LEAST_OTHERS))
MOST_DOMAIN = 200  # rows; more would not change the picture
LEAST_ROWS = 16  # of each set for losses
ANSWER_SHARE = 0.5  # of what is left when the model is loaded; the rest is for losses
FRACTIONS = tuple(percent / 100 for percent in range(100, 0, -4))


@dataclass
class Budget:
    """Seconds for a whole report, counted from its making; None has no end."""

    seconds: float | None
    started: float = field(default_factory=time.monotonic)

    def spent(self) -> float:
        return time.monotonic() - self.started

    def left(self, share: float = 1.0) -> float | None:
        """`share` of the seconds that are left, None without end."""
        return None if self.seconds is None else max(0.0, self.seconds - self.spent()) * share


@dataclass(frozen=True)
class LossPlan:
    """How many rows of each set are measured, at which scales, and after how many other questions each held-out
    answer is."""

    domain: int
    general: int
    scales: tuple[float, ...]
    others: int = OTHERS


def plan_losses(
    domain: Sequence[int], general: Sequence[int], seconds_per_token: float, seconds: float | None
) -> LossPlan:
    """Choose the most rows whose passes take at most `seconds`. `domain`, `general`: tokens of each row, in the order
    in which they are taken."""
    domain = domain[:MOST_DOMAIN]
    full = LossPlan(len(domain), len(general), SCALES)
    if seconds is None:
        return full
    for fraction in FRACTIONS:
        for scales, others in STAGES:
            plan = LossPlan(part(len(domain), fraction), part(len(general), fraction), scales, others)
            if plan_tokens(plan, domain, general) * seconds_per_token <= seconds:
                return plan
    return LossPlan(min(len(domain), LEAST_ROWS), min(len(general), LEAST_ROWS), *STAGES[-1])


def plan_tokens(plan: LossPlan, domain: Sequence[int], general: Sequence[int]) -> int:
    """Tokens that all passes of a plan take together: the base and the adapter on all rows, scales between on some,
    and held-out rows again for each other question, whose length is taken to be that of their own."""
    between = len(plan.scales) - 2
    return sum(
        2 * (1 + others) * sum(lengths[:rows]) + between * (1 + swept) * sum(lengths[: min(rows, SWEPT)])
        for lengths, rows, others, swept in (
            (domain, plan.domain, plan.others, min(plan.others, SWEPT_OTHERS)),
            (general, plan.general, 0, 0),
        )
    )


def part(rows: int, fraction: float, least: int = LEAST_ROWS) -> int:
    """A fraction of the rows, at least `least` of them; all, where there are fewer."""
    return min(rows, max(least, round(rows * fraction)))


def affordable(cost: float, seconds: float | None) -> float:
    """The share, from 0 to 1, of something that costs `cost` seconds that can be done in `seconds`."""
    if seconds is None or cost <= max(0.0, seconds):
        return 1.0
    return max(0.0, seconds) / cost
