"""One row, in any of the shapes that instruction sets come in, to an example; and back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from alpaca.data.columns import suggestion
from alpaca.data.plain_text import Passage
from alpaca.data.report import Fault, ReadReport
from alpaca.data.shapes import CONVERSATIONS, EXPECTED, TEXT, Broken, RepeatedField, Shape, shape_of, unread_fields
from alpaca.errors import BadMessages
from alpaca.prompts.example import Example
from alpaca.prompts.tools import read_tools
from alpaca.prompts.turn import Turn, text_problem
from alpaca.words import names, type_name

# Roles of ShareGPT, LLaMA-Factory and ms-swift, by OpenAI's names. CALLS: the text is a call as JSON, or several.
CALLS = ("function_call", "tool_call")
SAME_ROLES = dict.fromkeys(CALLS, "assistant") | {
    "human": "user", "gpt": "assistant", "observation": "tool", "tool_response": "tool", "function_response": "tool",
}  # fmt: skip
# Hermes' rows write tools as its template does, in plain text; the template would wrap what is wrapped once more.
LISTED, WRAPPED = "<tools>", re.compile(r"\s*<tool_response>\s*(.*?)\s*</tool_response>\s*", re.DOTALL)
NO_INPUT = "<noinput>"
Problem = tuple[str, str]  # field ("" for the whole row) and what is wrong with it
PREFERENCE = (
    "chosen",
    "stands beside 'rejected': a set of preferences, for DPO and its kin (TRL's DPOTrainer), not for this training. "
    "To train on the better answers alone: --columns prompt=instruction,chosen=output, without the field 'rejected'",
)


def parse_row(row: object, number: int, report: ReadReport) -> Example | None:
    """The row's example; None where the row is bad (faults are added to the report) or its output empty (counted)."""
    example = to_example(row, number)
    if not isinstance(example, Example):
        report.bad += [Fault(report.source, number, field, problem) for field, problem in example]
        return None
    report.shapes[shape_of(row).name] += 1
    report.unread.update(unread_fields(row))
    if has_blank_answer(example):
        report.empty_outputs += 1
        return None
    if says_no_input(example.turns[-1].input):
        report.noinput += 1
        return without_input(example)
    return example


def to_example(row: object, number: int) -> Example | list[Problem]:
    """The row as it stands, blank outputs and all, or what is wrong with it."""
    found = _without_tools(row, number)
    if not isinstance(found, Example) or found.raw or not isinstance(row, Mapping):
        return found
    if LISTED in found.system:  # the system text lists the tools already
        return found
    if holds_repeated_field(row.get("tools")):
        return [("tools", "an object names a field twice")]
    try:
        return replace(found, tools=read_tools(row.get("tools")))
    except BadMessages as error:
        return [("tools", error.message)]


def _without_tools(row: object, number: int) -> Example | list[Problem]:
    if isinstance(row, Broken):
        return [("", row.problem)]
    if not isinstance(row, Mapping):
        return [("", f"is {type_name(row)}, not an object with {EXPECTED}")]
    if isinstance(row, RepeatedField):
        return [("", "names a field twice")]
    if row.get("chosen") is not None and row.get("rejected") is not None:
        return [PREFERENCE]
    shape = shape_of(row)
    if problems := _misses(row, shape):
        return problems
    asked, *answered = (row[name] for name in shape.fields)
    if shape is TEXT:
        problem = text_problem(asked)
        place = row.place if isinstance(row, Passage) else None
        return [(shape.name, problem)] if problem else Example.text(asked, row=number, place=place)
    if shape in CONVERSATIONS:
        return _conversation(row, asked, shape.name, number)
    if isinstance(asked, list) and isinstance(answered[0], list):  # both as messages, as TRL has them
        return _conversation(row, [*asked, *answered[0]], shape.name, number)
    return _pair(row, shape, number)


def _misses(row: Mapping[str, Any], shape: Shape) -> list[Problem]:
    missing = [name for name in shape.fields if name not in row]
    for conversation in CONVERSATIONS:
        if missing and conversation.name in row:
            return [(conversation.name, "is null, not a list")]
    problems = [(name, f"is missing (fields found: {names(row)}; expected {EXPECTED})") for name in missing]
    return [*problems[:-1], (missing[-1], problems[-1][1] + suggestion(row))] if missing else []


def _pair(row: Mapping[str, Any], shape: Shape, number: int) -> Example | list[Problem]:
    asked, answered = shape.fields
    texts = {name: "" if row.get(name) is None else row[name] for name in ("input", "system")}
    texts |= {asked: row[asked], answered: "" if row[answered] is None else row[answered]}
    problems: list[Problem] = []
    for name in (asked, "input", answered, "system"):
        if problem := text_problem(texts[name]):
            problems.append((name, problem))
        elif name == asked and not texts[name].strip():
            problems.append((name, "is blank"))
    earlier = _history(row.get("history"))
    if isinstance(earlier, str):
        problems.append(("history", earlier))
    if problems or isinstance(earlier, str):
        return problems
    return Example((*earlier, Turn(texts[asked], texts["input"], texts[answered])), texts["system"], number)


def _history(value: Any) -> list[Turn] | str:
    """Earlier turns, as pairs of question and answer, or what is wrong with them."""
    if value is None or value == "":
        return []
    if not isinstance(value, Sequence) or isinstance(value, str):
        return f"is {type_name(value)}, not a list of [question, answer]"
    turns = []
    for at, pair in enumerate(value, 1):
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            return f"entry {at} is no pair [question, answer]"
        for text in pair:
            if problem := text_problem(text) or ("" if text.strip() else "is blank"):
                return f"entry {at} {problem}"
        turns.append(Turn(pair[0], "", pair[1]))
    return turns


def _conversation(row: Mapping[str, Any], messages: Any, field: str, number: int) -> Example | list[Problem]:
    if holds_repeated_field(messages):
        return [(field, "a message names a field twice")]
    if isinstance(messages, Sequence) and not isinstance(messages, str):
        messages = [_in_usual_words(message) for message in messages]
    try:
        example = Example.from_messages(messages, row=number)
    except BadMessages as error:
        return [(field, error.message)]
    if example.turns[-1].output is None:
        last = "a tool" if example.turns[-1].results else "the user"
        return [(field, f"ends with {last}; a row to train on ends with the assistant's answer")]
    return _with_system(example, row.get("system"), field)


def _with_system(example: Example, system: Any, field: str) -> Example | list[Problem]:
    if system is None or system == "":
        return example
    if problem := text_problem(system):
        return [("system", problem)]
    if example.system.strip() and example.system != system:
        return [("system", f"differs from the system message in {field}; leave one of them out")]
    return replace(example, system=system)


def _in_usual_words(message: Any) -> Any:
    """A message of ShareGPT's, or one with a role that is called otherwise there, as OpenAI writes it."""
    if not isinstance(message, Mapping):
        return message
    sharegpt = "from" in message and "value" in message and "role" not in message
    role, text = (message["from"], message["value"]) if sharegpt else (message.get("role"), message.get("content"))
    if not isinstance(role, str):
        return {"role": role, "content": text} if sharegpt else message
    usual = SAME_ROLES.get(role, role)
    if role in CALLS:
        return {"role": usual, "content": "", "tool_calls": text}
    if usual == "tool" and isinstance(text, str) and (wrapped := WRAPPED.fullmatch(text)):
        return {**message, "role": usual, "content": wrapped[1]}
    return {"role": usual, "content": text} if sharegpt else {**message, "role": usual}


def holds_repeated_field(value: Any) -> bool:
    """Whether an object in the value, however deep, names a field twice."""
    found = [value]
    while found:
        inner = found.pop()
        if isinstance(inner, RepeatedField):
            return True
        found += inner.values() if isinstance(inner, Mapping) else inner if isinstance(inner, list) else ()
    return False


def has_blank_answer(example: Example) -> bool:
    """Whether a turn has no answer to learn; such a row is left out of training."""
    return any(turn.is_blank for turn in example.turns)


def says_no_input(given: str) -> bool:
    """Whether an input is `<noinput>`, which Stanford's data writes where there is none."""
    return len(given) < 40 and given.strip().lower() == NO_INPUT


def without_input(example: Example) -> Example:
    """The example with nothing as its last turn's input."""
    return replace(example, turns=(*example.turns[:-1], replace(example.turns[-1], input="")))


def to_row(example: Example) -> dict[str, Any]:
    """A row that `to_example` reads as this example: {instruction, input, output} where that says all of it, {text} for
    raw text, else {messages}, with {tools} beside it."""
    turn = example.turns[0]
    if example.raw:
        return {"text": turn.output}
    if example.is_pair:
        return {"instruction": turn.instruction, "input": turn.input, "output": turn.output}
    return {"messages": example.messages()} | ({"tools": json.loads(example.tools)} if example.tools else {})
