"""The shapes that rows come in, and columns of other names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alpaca.data.columns import parse_columns, suggestion
from alpaca.data.reader import read_examples
from alpaca.data.scan import scan_rows
from alpaca.errors import BadRows, BadSetting, NoRowsLeft
from alpaca.prompts.example import Example, Turn

ASKED, ANSWERED = "How long do alpacas live?", "15 to 20 years."


def write(tmp_path: Path, *rows: Any) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read_one(tmp_path: Path, row: Any) -> Example:
    (example,) = read_examples(write(tmp_path, row)).examples
    return example


def refusal(tmp_path: Path, *rows: Any) -> str:
    with pytest.raises((BadRows, NoRowsLeft)) as refused:
        read_examples(write(tmp_path, *rows))
    return str(refused.value)


@pytest.mark.parametrize(("asked", "answered"), [("prompt", "completion"), ("question", "answer")])
def test_pairs_of_other_names_are_read_and_it_is_said(tmp_path: Path, asked: str, answered: str) -> None:
    dataset = read_examples(write(tmp_path, {asked: ASKED, answered: ANSWERED}))
    assert dataset.examples == [Example.single(ASKED, "", ANSWERED, row=1)]
    assert f"1 row of {asked} and {answered}, read as instruction and output" in dataset.report.lines()


def test_an_instruction_wins_over_other_pairs(tmp_path: Path) -> None:
    row = {"instruction": "a", "output": "b", "prompt": "c", "completion": "d"}
    assert read_one(tmp_path, row) == Example.single("a", "", "b", row=1)


def test_prompt_and_completion_may_be_messages(tmp_path: Path) -> None:
    row = {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ASKED}],
        "completion": [{"role": "assistant", "content": ANSWERED}],
    }
    assert read_one(tmp_path, row) == Example.single(ASKED, "", ANSWERED, system="Be brief.", row=1)


def test_system_and_history_stand_beside_an_instruction(tmp_path: Path) -> None:
    row = {
        "instruction": ASKED, "input": "", "output": ANSWERED, "system": "You are a keeper.",
        "history": [["What is a cria?", "A young alpaca."]],
    }  # fmt: skip
    turns = (Turn("What is a cria?", "", "A young alpaca."), Turn(ASKED, "", ANSWERED))
    assert read_one(tmp_path, row) == Example(turns, "You are a keeper.", 1)
    assert read_one(tmp_path, row | {"system": None, "history": None}) == Example.single(ASKED, "", ANSWERED, row=1)


def test_a_system_text_stays_where_the_input_says_there_is_none(tmp_path: Path) -> None:
    row = {"instruction": ASKED, "input": "<noinput>", "output": ANSWERED, "system": "Be brief."}
    assert read_one(tmp_path, row) == Example.single(ASKED, "", ANSWERED, system="Be brief.", row=1)
    assert scan_rows(write(tmp_path, row)).trainable() == [read_one(tmp_path, row)]


@pytest.mark.parametrize("field", ["messages", "conversations"])
def test_a_system_text_stands_beside_a_conversation(tmp_path: Path, field: str) -> None:
    said = [{"from": "human", "value": ASKED}, {"from": "gpt", "value": ANSWERED}]
    assert read_one(tmp_path, {field: said, "system": "Be brief."}).system == "Be brief."
    twice = [{"from": "system", "value": "Be long."}, *said]
    assert "differs from the system message" in refusal(tmp_path, {field: twice, "system": "Be brief."})
    assert read_one(tmp_path, {field: twice, "system": "Be long."}).system == "Be long."


@pytest.mark.parametrize(
    ("history", "fault"),
    [
        ("once", "is a text, not a list of [question, answer]"),
        ([["a"]], "entry 1 is no pair"),
        ([["a", "b"], ["c", 4]], "entry 2 is a number (4), not text"),
        ([["a", " "]], "entry 1 is blank"),
    ],
)
def test_a_bad_history_is_named(tmp_path: Path, history: Any, fault: str) -> None:
    said = refusal(tmp_path, {"instruction": ASKED, "output": ANSWERED, "history": history})
    assert f"row 1, history: {fault}" in said


def test_content_may_be_a_list_of_text_parts(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "How long "}, {"type": "text", "text": "do alpacas live?"}]
    said = [{"role": "user", "content": parts}, {"role": "assistant", "content": ANSWERED}]
    assert read_one(tmp_path, {"messages": said}) == Example.single(ASKED, "", ANSWERED, row=1)
    picture = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    assert "message 1: 'content' holds a part of type 'image_url'; only text is read" in refusal(
        tmp_path, {"messages": [{"role": "user", "content": picture}, said[1]]}
    )


def test_a_set_of_preferences_is_refused_with_what_it_is(tmp_path: Path) -> None:
    said = refusal(tmp_path, {"prompt": ASKED, "chosen": ANSWERED, "rejected": "No."})
    assert "a set of preferences" in said and "DPOTrainer" in said


def test_columns_that_are_not_read_are_said_once_with_their_count(tmp_path: Path) -> None:
    row = {"instruction": ASKED, "output": ANSWERED, "source": "zoo", "score": 5, "empty": ""}
    lines = read_examples(write(tmp_path, row, row | {"instruction": "Else?", "score": None})).report.lines()
    assert "columns not read: source (2) and score (1)" in lines


# --- columns of other names ---------------------------------------------------------------------------------------
def test_columns_are_renamed(tmp_path: Path) -> None:
    path = write(tmp_path, {"Frage": ASKED, "Antwort": ANSWERED, "instruction": "an old number"})
    columns = parse_columns(" Frage=instruction, Antwort=output ")
    assert read_examples(path, columns=columns).examples == [Example.single(ASKED, "", ANSWERED, row=1)]
    assert scan_rows(path, columns).examples == [Example.single(ASKED, "", ANSWERED, row=1)]


def test_a_column_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    path = write(tmp_path, {"Frage": ASKED, "Antwort": ANSWERED})
    with pytest.raises(BadSetting, match=r"'frage', which .* does not have \(columns found: Frage, Antwort\)"):
        read_examples(path, columns=parse_columns("frage=instruction,Antwort=output"))


@pytest.mark.parametrize("text", ["prompt", "=output", "a=b", "a=output,b=output", "a=input,a=output"])
def test_columns_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(BadSetting, match="columns is"):
        parse_columns(text)


@pytest.mark.parametrize(
    ("row", "option"),
    [
        ({"Frage": "a", "Antwort": "b"}, "--columns Frage=instruction,Antwort=output"),
        ({"问题": "a", "回答": "b"}, "--columns 问题=instruction,回答=output"),
        ({"instruction": "a", "response": "b", "context": "c"}, "--columns response=output,context=input"),
        ({"input": "a", "output": "b"}, "--columns input=instruction"),
        ({"My Prompt": "a", "Answer": "b"}, ""),
        ({"Prompt": "a", "Answer": "b", "x": "c"}, "--columns Prompt=instruction,Answer=output"),
    ],
)
def test_obvious_columns_are_suggested(tmp_path: Path, row: dict[str, str], option: str) -> None:
    assert suggestion(row).removeprefix(". Perhaps: ") == option
    if option:
        assert option in refusal(tmp_path, row)
        (example,) = read_examples(write(tmp_path, row), columns=parse_columns(option.split(" ", 1)[1])).examples
        assert (example.turns[0].instruction, example.turns[0].output) == ("a", "b")
