"""The run's own record: read where it is sound, passed over where it is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alpaca.adapter.card import Card
from alpaca.evaluation.history import read_history

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
