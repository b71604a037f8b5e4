"""The interval of a difference: right where it can be computed, and it covers the truth as often as it says."""

from __future__ import annotations

import numpy as np
import pytest

from alpaca.evaluation.bootstrap import paired_difference


def test_value_is_the_difference_of_the_weighted_means() -> None:
    found = paired_difference([10.0, 2.0], [12.0, 2.5], [4, 1])
    assert found.value == pytest.approx((12 + 2.5) / 5 - (10 + 2) / 5)


def test_rows_that_all_change_alike_leave_no_doubt() -> None:
    weights = [1.0, 5.0, 20.0]
    before = [3 * weight for weight in weights]
    found = paired_difference(before, [loss + 0.5 * w for loss, w in zip(before, weights, strict=True)], weights)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))


def test_pairs_stay_together_so_that_hard_rows_do_not_blur_a_small_change() -> None:
    hard = np.linspace(1, 1000, 40)
    found = paired_difference(hard.tolist(), (hard + 0.1).tolist(), [1.0] * 40)
    assert found.low == pytest.approx(0.1) and found.high == pytest.approx(0.1)


def test_the_interval_covers_the_true_difference_about_95_times_of_100() -> None:
    draw, covered, times, truth = np.random.default_rng(5), 0, 200, 0.3
    for _ in range(times):
        weights = draw.integers(5, 60, 50).astype(float)
        gaps = draw.normal(truth, 0.5, 50) * weights
        found = paired_difference(np.zeros(50).tolist(), gaps.tolist(), weights.tolist())
        covered += found.low <= truth <= found.high
    assert 0.88 <= covered / times <= 0.985


def test_the_same_rows_give_the_same_interval() -> None:
    draw = np.random.default_rng(1)
    rows = draw.normal(size=(2, 3000)).tolist()
    assert paired_difference(*rows, [1.0] * 3000) == paired_difference(*rows, [1.0] * 3000)


def test_one_row_has_no_width_and_none_is_refused() -> None:
    found = paired_difference([1.0], [2.0], [2.0])
    assert found.low == found.value == found.high == 0.5
    with pytest.raises(ValueError):
        paired_difference([], [], [])
