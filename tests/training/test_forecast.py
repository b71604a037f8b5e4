"""The expected time counts all that belongs to a run, and evaluations never take most of a short one."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from alpaca.training.forecast import FORWARD, SHARE, Forecast, evaluation_steps, report_seconds
from tests.training.runs import settings, train

WORK = Forecast(
    tokens=10_000, trial_tokens=1000, validation_tokens=2000, evaluations=3, checkpoints=3,
    checkpoint_bytes=200_000_000, report=60.0, token_seconds=0.01,
)  # fmt: skip


def test_every_part_of_a_run_counts() -> None:
    assert WORK.parts() == {"steps": 100, "trial": 10, "5 evaluations": 50, "3 checkpoints": 3}
    least, most = WORK.range()
    assert 0 < least < 163 + 60 < most
    assert WORK.line().endswith(
        "in all: steps 1:40, trial 0:10, 5 evaluations 0:50, 3 checkpoints 0:03, report up to 1:00"
    )
    bare = dataclasses.replace(WORK, validation_tokens=0, report=0.0)
    assert bare.line().endswith("in all: steps 1:40, trial 0:10, 0 evaluations 0:00, 3 checkpoints 0:03")


def test_after_the_trial_the_range_is_narrower_and_at_the_pace_that_was_met() -> None:
    slower = WORK.after_trial(20.0, None)
    assert slower.parts()["steps"] == 200 and "trial" not in slower.parts()
    assert slower.line().startswith("at the pace of the trial, ")
    assert slower.range()[1] / slower.range()[0] < WORK.range()[1] / WORK.range()[0]
    assert WORK.after_trial(20.0, evaluation=5.0).parts()["steps"] == 50  # the trial's was the first pass, and slow
    assert WORK.after_trial(2.0, evaluation=5.0).parts()["steps"] == 20


def test_the_report_takes_a_share_of_the_training_and_a_minute_at_least() -> None:
    assert [report_seconds(budget, 36_000) for budget in (0, 0.001, 0.05)] == [0, 60, 1800]


@pytest.mark.parametrize(
    ("steps", "validation", "every"),
    [
        (1, 0, 1), (4, 0, 4), (8, 0, 5), (14, 0, 5), (42, 0, 5), (80, 0, 10), (5000, 0, 200),
(42, 700, 5),  # a tenth of the rows of three epochs
        (14, 1400, 7), (14, 2500, 13), (14, 70_000, 14),  # an evaluation costs 1.4, 2.5 and 70 steps
    ],
)  # fmt: skip
def test_evaluations_are_apart_and_cost_little(steps: int, validation: int, every: int) -> None:
    found = evaluation_steps(steps, 500 * steps, validation)
    assert found == every
    if steps // found > 1:
        assert (steps // found) * FORWARD * validation <= SHARE * 500 * steps


def test_a_run_says_its_time_twice_and_evaluates_a_short_run_seldom(
    tiny_base: Path, rows: Path, tmp_path: Path
) -> None:
    lines = train(settings(tiny_base, rows, tmp_path / "out", eval_steps=None, num_epochs=1))
    times = [line for line in lines if re.match(r"estimate    .*\d:\d\d to \d+:\d\d in all: steps", line)]
    assert len(times) == 2 and "trial" in times[0] and "at the pace of the trial" in times[1]
    assert any("steps       5 of 4 examples" in line and line.endswith("checkpoint every 5") for line in lines)
