"""One row, in any of the forms that instruction sets come in, to an example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alpaca.data.report import Fault, ReadReport
from alpaca.errors import BadMessages
from alpaca.prompts.example import Example, text_problem
from alpaca.words import names, type_name

EXPECTED = "{instruction, input?, output}, {messages} or {conversations}"
CONVERSATION_FIELDS = ("messages", "conversations")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
NO_INPUT = "<noinput>"
Problem = tuple[str, str]  # field ("" for the whole row) and what is wrong with it


@dataclass(frozen=True, slots=True)
class Broken:
    """Stands where a row should be that could not even be parsed."""

    problem: str


class RepeatedField(dict[str, Any]):
    """A JSON object that names a field twice, so that one of the two values is lost."""


def parse_row(row: object, number: int, report: ReadReport) -> Example | None:
    """The row's example; None where the row is bad (faults are added to the report) or its output empty (counted)."""
    example = to_example(row, number)
    if not isinstance(example, Example):
        report.bad += [Fault(report.source, number, field, problem) for field, problem in example]
        return None
    if not all((turn.output or "").strip() for turn in example.turns):
        report.empty_outputs += 1
        return None
    if says_no_input(example.turns[0].input):
        report.noinput += 1
        return Example.single(example.turns[0].instruction, "", example.turns[0].output, row=number)
    return example


def to_example(row: object, number: int) -> Example | list[Problem]:
    """The row as it stands, blank outputs and all, or what is wrong with it."""
    if isinstance(row, Broken):
        return [("", row.problem)]
    if not isinstance(row, Mapping):
        return [("", f"is {type_name(row)}, not an object with {EXPECTED}")]
    if isinstance(row, RepeatedField):
        return [("", "names a field twice")]
    for field in CONVERSATION_FIELDS:
        if row.get(field) is not None:
            return _conversation(row[field], field, number)
    for field in CONVERSATION_FIELDS:
        if field in row and row.get("instruction") is None:
            return [(field, "is null, not a list")]
    return _instruction(row, number)


def _instruction(row: Mapping[str, Any], number: int) -> Example | list[Problem]:
    if missing := [field for field in ("instruction", "output") if field not in row]:
        return [(field, f"is missing (fields found: {names(row)}; expected {EXPECTED})") for field in missing]
    instruction = row["instruction"]
    given, output = ("" if value is None else value for value in (row.get("input"), row["output"]))
    problems: list[Problem] = []
    for field, value in (("instruction", instruction), ("input", given), ("output", output)):
        if problem := text_problem(value):
            problems.append((field, problem))
        elif field == "instruction" and not value.strip():
            problems.append((field, "is blank"))
    return problems or Example.single(instruction, given, output, row=number)


def _conversation(messages: Any, field: str, number: int) -> Example | list[Problem]:
    if isinstance(messages, Sequence) and not isinstance(messages, str):
        if any(isinstance(message, RepeatedField) for message in messages):
            return [(field, "a message names a field twice")]
        messages = [_from_sharegpt(message) for message in messages]
    try:
        example = Example.from_messages(messages, row=number)
    except BadMessages as error:
        return [(field, error.message)]
    if example.turns[-1].output is None:
        return [(field, "ends with the user; a row to train on ends with the assistant's answer")]
    return example


def _from_sharegpt(message: Any) -> Any:
    if not isinstance(message, Mapping) or "from" not in message or "value" not in message or "role" in message:
        return message
    role = message["from"]
    return {"role": SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role, "content": message["value"]}


def says_no_input(given: str) -> bool:
    """Whether an input is `<noinput>`, which Stanford's data writes where there is none."""
    return len(given) < 40 and given.strip().lower() == NO_INPUT
