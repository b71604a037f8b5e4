"""The run's own record: read where it is sound, passed over where it is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alpaca.adapter.card import Card
from alpaca.evaluation.history import Familiarity, History, read_history

STEPS = [
    {"step": 1, "loss": 2.0, "learning_rate": 1e-3, "tokens_per_second": 100, "memory": 5},
    {"step": 2, "eval_loss": 1.9},
    {"step": 2, "loss": float("nan"), "learning_rate": 1e-4, "unknown": 3},
    {"loss": 7.0},
    "no entry",
]


def write(folder: Path, content: str) -> Path:
    (folder / "report").mkdir()
    (folder / "report" / "training.json").write_text(content, encoding="utf-8")
    return folder


def test_every_field_that_was_written_is_a_curve(tmp_path: Path) -> None:
    card = Card("b", "f", {}, {}, losses={"validation_before": 3.0, "validation_after": 1.9})
    history = read_history(write(tmp_path, json.dumps({"history": STEPS})), card)
    assert history.curve("loss") == [(1.0, 2.0)]
    assert history.curve("memory") == [(1.0, 5.0)]
    assert history.curve("learning_rate") == [(1.0, 1e-3), (2.0, 1e-4)]
    assert history.validation == [(0.0, 3.0), (2.0, 1.9)]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"history": 3}', '{"history": [{"step": true, "loss": 1}]}'])
def test_a_damaged_record_is_none(tmp_path: Path, content: str) -> None:
    assert read_history(write(tmp_path, content), None).curves == {}


def test_an_adapter_from_elsewhere_has_none(tmp_path: Path) -> None:
    assert read_history(tmp_path, None).validation == []


@pytest.mark.parametrize(
    ("validation", "fell"),
    [
        ([(10.0, 2.5), (20.0, 2.3), (30.0, 2.2)], 0.1),
        ([(10.0, 2.5), (20.0, 2.21), (30.0, 2.2)], None),
        ([(10.0, 2.5), (20.0, 2.2), (30.0, 2.3)], None),
        ([(30.0, 2.2)], None),
        ([], None),
    ],
)
def test_a_loss_that_falls_to_the_end_is_told_from_one_that_has_come_to_rest(
    validation: list[tuple[float, float]], fell: float | None
) -> None:
    assert History({"eval_loss": validation}, 3.0, 2.2).still_falling == (fell and pytest.approx(fell))


@pytest.mark.parametrize(
    ("noted", "known"),
    [
        ({"rows": 1.6, "english": 0.8, "language": "German"}, Familiarity(1.6, 0.8, "German")),
        ({"rows": 1.6, "english": 0.8}, Familiarity(1.6, 0.8)),
        ({"rows": 1.6, "english": 0}, None),
        ({"rows": "much", "english": 0.8}, None),
        (3, None),
        (None, None),
    ],
)
def test_how_well_the_base_knew_the_rows_is_read_from_the_card(
    tmp_path: Path, noted: object, known: Familiarity | None
) -> None:
    assert read_history(tmp_path, Card("b", "f", {}, {}, losses={"per_byte": noted})).familiar == known


def test_only_a_language_far_from_english_is_strange() -> None:
    assert Familiarity(1.6, 0.8, "German").strange and Familiarity(1.6, 0.8).strange
    assert not Familiarity(1.0, 0.8, "German").strange and not Familiarity(1.6, 0.8, "English").strange
