"""Rows that nobody thought of: each is read, or refused with its file, row and field, and never ends a command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alpaca.data.__main__ import main
from alpaca.data.columns import parse_columns
from alpaca.data.reader import read_examples
from alpaca.errors import BadRows, NoRowsLeft
from alpaca.prompts.encode import encode_examples
from alpaca.prompts.example import Example
from alpaca.prompts.find import load_template
from tests.conftest import make_tokenizer

GOOD = '{"instruction": "a", "output": "b"}'


def write(tmp_path: Path, data: str, name: str = "rows.jsonl") -> str:
    path = tmp_path / name
    path.write_text(data, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("name", "data", "rows"),
    [
        ("rows.jsonl", f"\ufeff{GOOD}\n\ufeff{GOOD}\n\ufeff\n", 2),
        ("rows.csv", "\ufeff\ufeffinstruction,output\na,b\n", 1),
        ("rows.json", f"\ufeff\ufeff[{GOOD}]", 1),
    ],
)
def test_byte_order_marks_of_files_put_together_are_no_text(tmp_path: Path, name: str, data: str, rows: int) -> None:
    examples = read_examples(write(tmp_path, data, name)).examples
    assert [(example.turns[0].instruction, example.turns[0].output) for example in examples] == [("a", "b")] * rows


def test_shapes_may_be_mixed_in_a_file(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"instruction": "a", "output": "b"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "tools": "[]"},
        {"question": "a", "answer": "b"},
        {"text": "a b"},
    ]
    examples = read_examples(write(tmp_path, "\n".join(map(json.dumps, rows)))).examples
    assert [example.raw for example in examples] == [False] * 4 + [True]
    assert len({example.key() for example in examples[:4]}) == 1


@pytest.mark.parametrize("nothing", ["[]", "null", "{}", " ", ""])
def test_no_tools_may_be_said_in_many_ways(tmp_path: Path, nothing: str) -> None:
    call = {"role": "assistant", "content": "b", "tool_calls": nothing}
    row = {"messages": [{"role": "user", "content": "a"}, call], "tools": nothing}
    (example,) = read_examples(write(tmp_path, json.dumps(row))).examples
    assert example == Example.single("a", "", "b", row=1)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"": "x", " ": "y"}, "(fields found: '', ' ';"),
        ({"messages": [None, None]}, "messages: message 1 is null, not an object"),
        ({"conversations": [{"from": None, "value": None}]}, "conversations: message 1: 'role' is null, not text"),
        ({"instruction": "a", "output": "b", "history": [[None, "x"]]}, "history: entry 1 is null, not text"),
        (
            {"messages": [{"role": "user", "content": {"a": 1}}]},
            "messages: message 1: 'content' is an object, not text",
        ),
        ({"system": "Be brief."}, "instruction: is missing"),
    ],
)
def test_a_row_of_nulls_and_blanks_is_named(tmp_path: Path, row: Any, problem: str) -> None:
    with pytest.raises(BadRows) as refused:
        read_examples(write(tmp_path, f"{json.dumps(row)}\n{GOOD}"))
    assert "row 1" in str(refused.value) and problem in str(refused.value)


def test_a_single_row_that_is_no_use_is_one_row(tmp_path: Path) -> None:
    with pytest.raises(NoRowsLeft, match=r"rows.jsonl: 1 row, none of which can be used:"):
        read_examples(write(tmp_path, '{"a": "b"}'))


def test_a_column_of_raw_text_may_have_another_name(tmp_path: Path) -> None:
    path = write(tmp_path, "Der Inhalt,Nr\nHeu und Gras,1\n", "rows.csv")
    assert read_examples(path, columns=parse_columns("Der Inhalt=text")).examples == [
        Example.text("Heu und Gras", row=1)
    ]


def test_half_a_character_in_a_name_does_not_end_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = write(tmp_path, GOOD.replace('"a"', '"a", "\\ud83e": "z"'))
    with pytest.raises(SystemExit) as ended:
        main([rows, "--base_model", "", "--json", "found.json"])
    assert ended.value.code == 0
    assert json.loads(Path("found.json").read_text(encoding="utf-8"))["rows"]["extra_fields"] == {"\ud83e": 1}


# --- templates that do odd things ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("jinja", "problem"),
    [
        ("{{ 1 // 0 }}", "the base's chat template fails: ZeroDivisionError: integer division or modulo by zero"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "the base's chat template fails: OverflowError: Range too big."),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "the base's chat template fails: RecursionError: "),
        ("{{ raise_exception('\x1b[31m\nno') }}", "the base's chat template refuses this conversation: \\u001b[31m no"),
        ("hello", "the base's chat template leaves out the answer"),
        ("", "the base's chat template leaves out the answer"),
        ("{% for m in messages[:1] %}{{ m.content }}{% endfor %}", "the base's chat template leaves out the answer"),
    ],
)  # fmt: skip
def test_what_a_template_does_is_a_fault_of_the_row_in_one_line(jinja: str, problem: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = jinja or " "
    row = Example.single("a", "", "b", row=3)
    (refused,) = encode_examples(tokenizer, load_template("chat", tokenizer), [row], cutoff_len=99).report.refused
    assert refused.row == 3 and refused.problem.startswith(problem) and "\n" not in refused.problem
