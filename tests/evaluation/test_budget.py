"""The budget's arithmetic: everything where there is time, never more than fits, never fewer than is useful."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpaca.evaluation.budget import (
    FEW_OTHERS,
    FEW_SCALES,
    LEAST_OTHERS,
    LEAST_ROWS,
    MOST_DOMAIN,
    OTHERS,
    SCALES,
    Budget,
    affordable,
    part,
    plan_losses,
    plan_tokens,
)

LENGTHS = st.lists(st.integers(2, 400), max_size=300)


def test_without_end_everything_is_measured() -> None:
    plan = plan_losses([100] * 24, [50] * 118, 1.0, None)
    assert (plan.domain, plan.general, plan.scales) == (24, 118, SCALES)
    assert plan_losses([100] * 5000, [50] * 10, 1.0, None).domain == MOST_DOMAIN


@given(LENGTHS, LENGTHS.filter(bool), st.floats(1e-6, 1.0), st.floats(0, 1e5))
def test_a_plan_fits_or_is_the_least_one(domain: list[int], general: list[int], pace: float, seconds: float) -> None:
    plan = plan_losses(domain, general, pace, seconds)
    least = (min(len(domain), LEAST_ROWS), min(len(general), LEAST_ROWS), FEW_SCALES)
    assert plan.domain >= least[0] and plan.general >= least[1]
    fits = plan_tokens(plan, domain, general) * pace <= seconds
    assert fits or (plan.domain, plan.general, plan.scales) == least


def test_less_time_never_measures_more() -> None:
    lengths = [100] * 100, [60] * 118
    costs = [plan_tokens(plan_losses(*lengths, 0.001, seconds), *lengths) for seconds in (1, 5, 20, 40, 80, 1000)]
    assert costs == sorted(costs) and costs[0] < costs[-1]


def test_tokens_count_two_passes_and_those_between() -> None:
    plan = plan_losses([10] * 4, [5] * 100, 1.0, None)
    assert plan_tokens(plan, [10] * 4, [5] * 100) == 2 * (5 * 40 + 500) + 3 * (3 * 40 + 64 * 5)


@pytest.mark.parametrize(("rows", "fraction", "expected"), [(100, 0.5, 50), (100, 0.01, 16), (10, 0.5, 10), (0, 1, 0)])
def test_a_part_has_a_floor(rows: int, fraction: float, expected: int) -> None:
    assert part(rows, fraction) == expected


@pytest.mark.parametrize(
    ("cost", "seconds", "share"),
    [(10, None, 1), (10, 20, 1), (10, 5, 0.5), (10, 0, 0), (10, -3, 0), (0, 0, 1), (0, -1, 1)],
)
def test_the_affordable_share(cost: float, seconds: float | None, share: float) -> None:
    assert affordable(cost, seconds) == share


def test_a_budget_counts_down_to_nothing() -> None:
    assert Budget(None).left() is None
    assert Budget(10, started=Budget(10).started - 60).left() == 0
    assert 0 < (Budget(1000).left(0.5) or 0) <= 500


def test_other_questions_are_given_up_before_rows_are() -> None:
    lengths = [100] * 60, [60] * 118
    cost = plan_tokens(plan_losses(*lengths, 0.001, None), *lengths) * 0.001
    plans = [plan_losses(*lengths, 0.001, cost * share) for share in (1.0, 0.8, 0.1)]
    assert [plan.others for plan in plans] == [OTHERS, FEW_OTHERS, LEAST_OTHERS]
    assert (plans[1].domain, plans[1].general) == (60, 118) and plans[2].domain == LEAST_ROWS
