"""Raw text: trained as it stands, every token of it, in pieces where it is long."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alpaca.data.check import check_rows
from alpaca.data.fix import mend, write_rows
from alpaca.data.reader import read_examples
from alpaca.data.scan import scan_rows
from alpaca.errors import BadRows
from alpaca.prompts.encode import encode_examples
from alpaca.prompts.example import Example
from alpaca.prompts.find import load_template
from tests.conftest import make_tokenizer
from tests.training.runs import settings, train

TEXT = "the alpaca eats hay <|im_end|> and grass\nin the field. " * 6


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("cutoff_len", [2, 7, 30, 1000])
def test_every_token_is_trained_once_and_nothing_is_lost(cutoff_len: int, add_bos: bool) -> None:
    tokenizer = make_tokenizer(add_bos=add_bos)
    found = encode_examples(
        tokenizer, load_template("chat", tokenizer), [Example.text(TEXT, row=3)], cutoff_len=cutoff_len
    )
    first, *further = found.examples
    assert all(len(piece) <= cutoff_len and piece.row == 3 for piece in found.examples)
    assert all(piece.trained == [(1, len(piece))] for piece in found.examples)
    assert all(
        piece.input_ids[0] == before.input_ids[-1] for before, piece in zip(found.examples, further, strict=False)
    )
    ids = [*first.input_ids, *(token for piece in further for token in piece.input_ids[1:])]
    assert (ids[0] == tokenizer.bos_token_id) == add_bos
    assert ids[-1] == tokenizer.eos_token_id and tokenizer.eos_token_id not in ids[:-1]  # its spelling stays text
    assert tokenizer.decode(ids[add_bos:-1]) == TEXT
    assert found.report.lengths.tolist() == [len(ids)]
    assert found.report.cut == ([3] if len(ids) > cutoff_len else [])


def test_rows_of_text_are_read_and_it_is_said(tmp_path: Path) -> None:
    dataset = read_examples(str(write(tmp_path / "rows.jsonl", {"text": TEXT}, {"text": " "})))
    assert dataset.examples == [Example.text(TEXT, row=1)]
    assert dataset.report.empty_outputs == 1
    assert "2 rows of raw text: every token is trained, without a template" in dataset.report.lines()
    with pytest.raises(BadRows, match="row 2, text: is a number"):
        read_examples(str(write(tmp_path / "rows.jsonl", {"text": TEXT}, {"text": 4})))


def test_an_instruction_wins_over_a_text_beside_it(tmp_path: Path) -> None:
    row = {"instruction": "a", "output": "b", "text": "a b"}
    assert read_examples(str(write(tmp_path / "rows.jsonl", row))).examples == [Example.single("a", "", "b", row=1)]


def test_a_text_is_another_example_than_its_answer_to_nothing() -> None:
    assert Example.text("hay").key() != Example.single("", "", "hay").key()


def test_the_check_finds_raw_text_fit_and_a_fix_keeps_it(tmp_path: Path) -> None:
    scan = scan_rows(str(write(tmp_path / "rows.jsonl", {"text": TEXT}, {"text": "Hay is dried grass. "})))
    check = check_rows(scan, None)
    assert not check.unfit() and check.trainable == 2
    write_rows(mend(scan).examples, tmp_path / "better.jsonl")
    kept = read_examples(str(tmp_path / "better.jsonl")).examples
    assert [example.turns[0].output for example in kept] == [TEXT.strip(), "Hay is dried grass."]
    assert all(example.raw for example in kept)


def test_raw_text_is_trained_reported_and_held_out_like_other_rows(tmp_path: Path, tiny_base: Path) -> None:
    rows = [{"text": f"task {number}: {TEXT}"} for number in range(8)]
    rows += [{"instruction": f"task {number}", "output": "hay"} for number in range(4)]
    config = settings(
        tiny_base, write(tmp_path / "rows.jsonl", *rows), tmp_path / "out", cutoff_len=64, report_budget=0.01
    )
    said = train(config)
    assert any("8 rows of raw text" in line for line in said)
    assert any("texts cut into pieces of at most 64 tokens" in line for line in said)
    assert (tmp_path / "out" / "report" / "index.html").is_file(), said


def test_a_text_file_is_trained_held_out_replayed_and_measured_apart(tmp_path: Path, tiny_base: Path) -> None:
    paragraphs = [
        f"task {number}: the alpaca eats hay, and grass {number * number} in the field." for number in range(60)
    ]
    text, other = tmp_path / "text.txt", tmp_path / "other.txt"
    text.write_text("\n\n".join(paragraphs), encoding="utf-8")
    other.write_text("Hay is dried grass.\n\nThe herd eats it in the field.", encoding="utf-8")
    config = settings(
        tiny_base, text, tmp_path / "out", cutoff_len=64, report_budget=0.01, num_epochs=1, val_data_path=str(other),
        replay_path=str(other), replay_ratio=0.1,
    )  # fmt: skip
    said = train(config)
    lines = "\n".join(said)
    assert " sections to train on, 4 held out" in lines
    assert "2 rows of other.txt, measured apart" in lines and "general rows of" in lines
    assert "It learned your text: 4 parts" in lines or "It did not learn your text: 4 parts" in lines
    assert "questions" in lines and "manner" not in lines
    assert json.loads((tmp_path / "out" / "report" / "report.json").read_text())["domain"]["rows"] == 4
