"""Percentiles: always the length of a row, and the same wherever lengths are told."""

from __future__ import annotations

import numpy as np

from alpaca.data.lengths import Lengths
from alpaca.evaluation.facts import DataFacts
from alpaca.prompts.encode import LengthReport
from alpaca.prompts.percentiles import percentiles

TEN = [70, 10, 30, 20, 50, 40, 60, 100, 80, 90]


def test_the_median_of_ten_rows_is_the_fifth_and_all_have_at_most_the_longest() -> None:
    assert percentiles(TEN, [1, 10, 50, 51, 100]) == {1: 10, 10: 10, 50: 50, 51: 60, 100: 100}
    assert percentiles([7]) == dict.fromkeys((50, 75, 90, 95, 99, 100), 7)
    assert percentiles([]) == {}


def test_the_plan_the_check_and_the_report_tell_the_same() -> None:
    lengths = np.array(TEN)
    plan = LengthReport(100, 10, 0, [], [], lengths).percentiles()
    check = Lengths(lengths, "tokens", "a base", 100, [], []).percentiles()
    report = DataFacts("", {}, lengths=TEN).percentiles
    assert plan == check == percentiles(TEN)
    assert {percent: plan[percent] for percent in plan if percent in report} == {50: 50, 95: 100, 100: 100}
    assert {percent: report[percent] for percent in report if percent in plan} == {50: 50, 95: 100, 100: 100}
