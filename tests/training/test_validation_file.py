"""--val_data_path: a second validation file that is never trained on, and whose loss is reported apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alpaca.adapter.card import read_card
from alpaca.errors import DataError, NoRowsLeft
from tests.training.runs import adapter_bytes, make_rows, settings, train, write_rows


@pytest.fixture
def others(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "others.jsonl", make_rows(40)[30:])


def test_each_files_loss_is_reported_apart_and_stands_in_the_card(
    tiny_base: Path, rows: Path, others: Path, tmp_path: Path
) -> None:
    said = train(settings(tiny_base, rows, tmp_path / "adapter", val_data_path=str(others)))
    losses = [line for line in said if line.startswith("loss ")]
    assert len(losses) == 2
    assert losses[0].endswith("on 4 held-out rows") and losses[1].endswith("on 10 rows of others.jsonl")
    card = read_card(tmp_path / "adapter")
    assert card is not None
    found = card.losses["validation_file"]
    assert (found["source"], found["rows"]) == ("others.jsonl", 10)
    assert losses[1].split()[1] == f"{found['before']:.4f}" and found["after"] < found["before"]
    assert found["before"] != card.losses["validation_before"]
    assert "On 10 rows of `others.jsonl`" in (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")


def test_it_changes_nothing_of_what_is_trained(tiny_base: Path, rows: Path, others: Path, tmp_path: Path) -> None:
    train(settings(tiny_base, rows, tmp_path / "with", val_data_path=str(others)))
    train(settings(tiny_base, rows, tmp_path / "without"))
    assert adapter_bytes(tmp_path / "with") == adapter_bytes(tmp_path / "without")
    card = read_card(tmp_path / "without")
    assert card is not None and "validation_file" not in card.losses


def test_its_columns_have_the_names_of_the_training_rows(tiny_base: Path, tmp_path: Path) -> None:
    given = [{"Frage": row["instruction"], "Antwort": row["output"]} for row in make_rows(40)]
    rows, others = write_rows(tmp_path / "a.jsonl", given[:30]), write_rows(tmp_path / "b.jsonl", given[30:])
    columns = {"columns": "Frage=instruction,Antwort=output", "val_data_path": str(others), "dry_run": True}
    said = train(settings(tiny_base, rows, tmp_path / "adapter", **columns))
    assert any(line.endswith("10 rows of b.jsonl, measured apart") for line in said)


def test_rows_are_counted_and_not_the_pieces_they_are_cut_into(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": "the alpaca eats hay " * 100}, {"text": "hay"}])
    said = train(settings(tiny_base, rows, tmp_path / "a", val_data_path=str(texts), cutoff_len=64, dry_run=True))
    assert any(line.endswith("2 rows of texts.jsonl, measured apart") for line in said)


def test_it_may_be_the_only_validation(tiny_base: Path, rows: Path, others: Path, tmp_path: Path) -> None:
    said = train(settings(tiny_base, rows, tmp_path / "adapter", val_data_path=str(others), val_set_size=0))
    assert [line.rpartition(", on ")[2] for line in said if line.startswith("loss ")] == ["10 rows of others.jsonl"]


def test_rows_that_are_trained_on_as_well_are_counted(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    said = train(settings(tiny_base, rows, tmp_path / "a", val_data_path=str(rows), val_set_size=4, dry_run=True))
    assert any("24 rows of rows.jsonl, measured apart; 20 of them are training rows too" in line for line in said)


def test_a_bad_file_is_refused_before_work_begins(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    bad = write_rows(tmp_path / "bad.jsonl", [{"instruction": "no answer"}])
    with pytest.raises(DataError, match=r"(?s)val_data_path: .*bad\.jsonl row 1"):
        train(settings(tiny_base, rows, tmp_path / "adapter", val_data_path=str(bad)))
    long = write_rows(tmp_path / "long.jsonl", [{"instruction": "hay " * 500, "output": json.dumps("x")}])
    with pytest.raises(NoRowsLeft, match="val_data_path: none of the 1 rows"):
        train(settings(tiny_base, rows, tmp_path / "adapter", val_data_path=str(long), cutoff_len=64))
    assert not (tmp_path / "adapter").exists()
