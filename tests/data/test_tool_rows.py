"""Rows with tools, in the shapes that people have them: read, looked at, mended, refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alpaca.data.check import check_rows
from alpaca.data.fix import mend, write_rows
from alpaca.data.reader import read_examples
from alpaca.data.rows import to_example, to_row
from alpaca.data.scan import scan_rows
from alpaca.data.yardstick import Yardstick
from alpaca.errors import NoRowsLeft
from alpaca.prompts.find import load_template
from alpaca.prompts.turn import Call, Result, Turn
from tests.prompts.chat_templates import SHAPES

TOOLS = [{"name": "warmth", "description": "In °C", "parameters": {"type": "object"}}]
CALL = {"name": "warmth", "arguments": {"city": "Lima"}}
TURNS = (
    Turn("How warm is Lima?", "", "", (Call("warmth", '{"city": "Lima"}'),)),
    Turn("", "", "It is warm.", results=(Result("20"),)),
)
OPENAI = {
    "messages": [
        {"role": "user", "content": "How warm is Lima?"},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": CALL}]},
        {"role": "tool", "content": "20"},
        {"role": "assistant", "content": "It is warm."},
    ],
    "tools": TOOLS,
}


def sharegpt(called: str, answered: str) -> dict[str, Any]:
    said = (("human", "How warm is Lima?"), (called, json.dumps(CALL)), (answered, "20"), ("gpt", "It is warm."))
    return {"conversations": [{"from": who, "value": text} for who, text in said], "tools": json.dumps(TOOLS)}


def write(tmp_path: Path, *rows: Any) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    "row",
    [
        OPENAI,
        {**OPENAI, "tools": json.dumps(TOOLS)},
        {"prompt": OPENAI["messages"][:1], "completion": OPENAI["messages"][1:], "tools": TOOLS},
        sharegpt("function_call", "observation"),
        sharegpt("tool_call", "tool_response"),
        sharegpt("function_call", "tool"),
        {"messages": [{"role": "tool_call" if "tool_calls" in said else said["role"],
                       "content": said["content"] or json.dumps([CALL])} for said in OPENAI["messages"]],
         "tools": TOOLS},
    ],
    ids=["openai", "tools as text", "prompt and completion", "llama-factory", "ms-swift", "sharegpt", "swift messages"],
)  # fmt: skip
def test_every_shape_of_row_with_tools_is_the_same_conversation(tmp_path: Path, row: dict[str, Any]) -> None:
    (example,) = read_examples(write(tmp_path, row)).examples
    assert example.turns == TURNS
    assert json.loads(example.tools) == [{"type": "function", "function": TOOLS[0]}]
    assert to_example(to_row(example), 1) == example


def test_hermes_rows_which_write_the_tags_themselves_are_not_wrapped_twice(tmp_path: Path) -> None:
    said = [
        ("system", "You may call: <tools>[]</tools>"), ("human", "How warm is Lima?"),
        ("gpt", "<tool_call>\n{}\n</tool_call>"), ("tool", "<tool_response>\n20\n</tool_response>"), ("gpt", "Warm."),
    ]  # fmt: skip
    row = {"conversations": [{"from": who, "value": text} for who, text in said], "tools": json.dumps(TOOLS)}
    (example,) = read_examples(write(tmp_path, row)).examples
    assert (example.tools, example.turns[1].results, example.turns[1].output) == ("", (Result("20"),), "Warm.")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({**OPENAI, "tools": "soon"}, "row 1, tools: is not JSON: line 1, column 1"),
        ({**OPENAI, "tools": ["warmth"]}, "row 1, tools: tool 1 is a text, not an object"),
        ({"messages": OPENAI["messages"][:3]}, "row 1, messages: ends with a tool; a row to train on ends with"),
        (sharegpt("function_call", "narrator"), "row 1, conversations: message 3 has the role 'narrator'; known are"),
        (
            {"messages": OPENAI["messages"][:1] + OPENAI["messages"][2:]},
            "message 2 is from the tool where the assistant",
        ),
    ],
)
def test_what_is_wrong_with_a_row_with_tools_is_named(tmp_path: Path, row: Any, problem: str) -> None:
    with pytest.raises(NoRowsLeft) as refused:
        read_examples(write(tmp_path, row))
    assert problem in str(refused.value)


def test_a_call_that_names_an_argument_twice_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(OPENAI).replace('{"city": "Lima"}', '{"city": "Lima", "city": "Cusco"}'))
    with pytest.raises(NoRowsLeft, match="row 1, messages: a message names a field twice"):
        read_examples(str(path))


def test_rows_with_tools_are_looked_at_and_mended(tmp_path: Path) -> None:
    trimmed = json.loads(json.dumps(OPENAI).replace("It is warm.", " It is warm. "))
    source = write(tmp_path, OPENAI, OPENAI, trimmed, {"messages": OPENAI["messages"][:2], "tools": TOOLS})
    check = check_rows(scan_rows(source), None)
    assert (check.trainable, check.duplicates.exact, check.scan.reshaped) == (4, [[1, 2]], [])
    mended = mend(scan_rows(source))
    assert {kind: rows for kind, rows in mended.done.items() if rows} == {"exact_duplicate": [2, 3]}
    write_rows(mended.examples, tmp_path / "better.jsonl")
    better = read_examples(str(tmp_path / "better.jsonl")).examples
    assert [example.turns for example in better] == [TURNS, TURNS[:1]]
    assert [example.key() for example in better] == [example.key() for example in mended.examples]


def test_rows_that_the_template_would_lose_are_faults_like_any_other(tmp_path: Path) -> None:
    tokenizer = SHAPES["Qwen2.5 base"].tokenizer()
    yardstick = Yardstick(tmp_path, tokenizer, load_template("chat", tokenizer), 512)
    plain = {"instruction": "a", "output": "b"}
    check = check_rows(scan_rows(write(tmp_path, plain, OPENAI, {"messages": OPENAI["messages"]})), yardstick)
    assert [(fault.row, fault.problem.partition(";")[0]) for fault in check.scan.faults] == [
        (2, "the base's chat template leaves out the schema of the tool 'warmth'"),
        (3, "the base's chat template leaves out the call of the tool 'warmth'"),
    ]
    assert check.trainable == 1
