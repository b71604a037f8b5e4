"""The verdict: plain rules from numbers to sentences, and the scale that is recommended."""

from __future__ import annotations

from typing import Any

import pytest

from alpaca.evaluation.results import ScalePoint
from alpaca.evaluation.verdict import Forgetting, judge, recommend_scale
from tests.evaluation.measured import change, drift, measured, probing, sweep

EASIER = sweep((0.0, 3.0, 2.0), (0.5, 2.05, 2.04), (1.0, 2.0, 2.2), recommended=0.5)


def test_a_good_adapter_is_to_be_used_as_it_is() -> None:
    verdict = judge(measured(), replay_ratio=0.1)
    assert (verdict.learned, verdict.forgetting) == (True, Forgetting.NOTHING)
    assert "2.7 times as likely" in verdict.improved and "40 rows" in verdict.improved
    assert verdict.advice == "Use it as it is."


@pytest.mark.parametrize(
    ("changes", "forgetting", "says"),
    [
        ({"general": change(2.0, 2.05)}, Forgetting.LITTLE, "word by word, 5 % less likely"),
        ({"general": change(2.0, 2.2)}, Forgetting.CLEAR, "18 % less likely"),
        ({"general": change(2.0, 3.0)}, Forgetting.MUCH, "63 % less likely"),
        ({"general": change(2.0, 2.2, spread=0.3)}, Forgetting.NOTHING, "as likely as before"),
        ({"general": change(2.2, 2.0)}, Forgetting.NOTHING, "22 % likelier"),
        ({"probing": probing(("logic", 50, 40, 34))}, Forgetting.CLEAR, "passes 34 of 50 small tests (the base: 40)"),
        ({"probing": probing(("logic", 50, 40, 38))}, Forgetting.NOTHING, "passes 38 of 50"),
        ({"probing": probing(("logic", 9, 0, 0))}, Forgetting.NOTHING, "passes 0 of 9"),
        (
            {"probing": probing(("logic", 50, 30, 36), ("identity", 12, 9, 3))},
            Forgetting.CLEAR,
            "it passes 3 of 12 tests of saying what it is (the base: 9).",
        ),
        ({"drift": drift(100, 0, 40)}, Forgetting.MUCH, "40 of 100 answers to unrelated questions talk like your data"),
        ({"drift": drift(20, 0, 1)}, Forgetting.NOTHING, "1 of 20 answers"),
        ({"drift": None, "probing": None}, Forgetting.NOTHING, "as likely as before"),
    ],
)  # fmt: skip
def test_each_sign_of_forgetting_is_seen_and_said(changes: dict[str, Any], forgetting: Forgetting, says: str) -> None:
    verdict = judge(measured(**changes), replay_ratio=0.0)
    assert verdict.forgetting == forgetting
    assert says in verdict.forgotten


@pytest.mark.parametrize(
    ("ratio", "advice"),
    [
        (None, "--replay_ratio 0.1"),
        (0.0, "--replay_ratio 0.1"),
        (0.1, "--replay_ratio 0.2 instead of 0.1"),
        (0.2, "--replay_ratio 0.3 instead of 0.2"),
        (0.3, "fewer epochs"),
    ],
)
def test_clear_forgetting_is_answered_with_more_replay_than_there_was(ratio: float | None, advice: str) -> None:
    assert advice in judge(measured(general=change(2.0, 2.2)), ratio).advice


def test_a_scale_that_eases_the_forgetting_is_named_and_one_that_does_not_is_not() -> None:
    assert "until then, adapter_scale 0.5 keeps" in judge(measured(general=change(2.0, 2.2), sweep=EASIER), 0.1).advice
    assert "adapter_scale 0.5" in judge(measured(general=change(2.0, 2.05), sweep=EASIER), 0.1).advice
    useless = sweep((0.0, 3.0, 2.0), (0.5, 2.05, 2.19), (1.0, 2.0, 2.2), recommended=0.5)
    assert "adapter_scale" not in judge(measured(general=change(2.0, 2.2), sweep=useless), 0.1).advice
    assert "adapter_scale" not in judge(measured(sweep=EASIER), 0.1).advice


@pytest.mark.parametrize("domain", [change(3.0, 3.1), change(3.0, 2.99, spread=0.001), change(3.0, 2.8, spread=0.3)])
def test_an_adapter_that_learned_nothing_is_of_no_use(domain: Any) -> None:
    verdict = judge(measured(domain=domain), None)
    assert verdict.learned is False
    assert "did not learn" in verdict.improved and "of no use" in verdict.advice


def test_without_held_out_rows_only_forgetting_is_judged() -> None:
    verdict = judge(measured(domain=None, general=change(2.0, 2.2)), 0.0)
    assert verdict.learned is None
    assert "could not be measured" in verdict.improved
    assert "--replay_ratio" in verdict.advice


def points(*values: tuple[float, float | None, float]) -> list[ScalePoint]:
    return [ScalePoint(*value) for value in values]


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([(0, 3.0, 2.0), (0.5, 2.5, 2.1), (0.75, 2.09, 2.2), (1, 2.0, 2.4)], 0.75),
        ([(0, 3.0, 2.0), (0.5, 2.08, 2.1), (0.75, 2.05, 2.2), (1, 2.0, 2.4)], 0.5),
        ([(0, 3.0, 2.0), (0.5, 2.11, 2.1), (1, 2.0, 2.4)], 1.0),
        ([(0, 3.0, 2.0), (0.5, 1.9, 2.1), (1, 2.0, 2.0)], 1.0),
        ([(0, 3.0, 2.0), (0.5, 2.0, 2.0), (1, 2.0, 2.0)], 1.0),
        ([(0, 3.0, 2.0), (0.5, 3.0, 2.0), (1, 3.1, 2.0)], None),
        ([(0, None, 2.0), (0.5, None, 2.0), (1, None, 2.0)], None),
    ],
)
def test_the_recommended_scale_keeps_the_gain_at_the_least_general_loss(values: Any, scale: float | None) -> None:
    assert recommend_scale(points(*values)) == scale
