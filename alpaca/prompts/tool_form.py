"""How a chat template takes calls of tools, and what it leaves out of them: found by rendering, not by reading it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from alpaca.errors import BadMessages, BadTemplate
from alpaca.prompts.example import Example
from alpaca.prompts.marks import Marks
from alpaca.prompts.turn import Call, Result, Turn

Message = dict[str, Any]
NAME, KEY, RESULT = "alpacacall", "alpacakey", "alpacaresult"
PROBE = Example(
    (
        Turn("alpacaquestion", "", "", (Call(NAME, json.dumps({KEY: "alpacavalue"}), "alpaca123"),)),
        Turn("", results=(Result(RESULT, NAME, "alpaca123"),)),
    )
)
TOOLS = json.dumps([{"type": "function", "function": {"name": NAME, "description": "", "parameters": {}}}])
WRONG = (f"'{KEY}'", f'\\"{KEY}')  # an object as Python prints it, and text that was written as JSON once more


@dataclass(frozen=True)
class ToolForm:
    """How a template wants a message that calls tools.

    `as_text`: arguments as JSON text instead of an object. `before`: what the template writes from the end of a result
    to where the model begins to write.
    """

    as_text: bool = False
    before: str = ""

    def message(self, message: Message, mark: Callable[[str], str]) -> Message:
        """A message that calls, as `Example.messages` has it, in this form and with its texts marked."""
        calls = [call | {"function": self._function(call["function"], mark)} for call in message["tool_calls"]]
        for call in calls:
            call |= {"id": mark(call["id"])} if "id" in call else {}
        return message | {"tool_calls": calls}

    def _function(self, function: dict[str, str], mark: Callable[[str], str]) -> dict[str, Any]:
        arguments = changed(json.loads(function["arguments"]), mark)
        text = json.dumps(arguments, ensure_ascii=False)
        return {"name": mark(function["name"]), "arguments": text if self.as_text else arguments}


def find_tool_form(render: Callable[[Example, ToolForm], str], probe: Example) -> ToolForm:
    """The first form in which the template writes the call in `probe` as it should be, else the usual one.

    `render(example, form)` gives the prompt for the example's next answer.
    """
    for form in (ToolForm(), ToolForm(as_text=True)):
        try:
            text = render(probe, form)
        except (BadMessages, BadTemplate):
            continue
        if NAME in text and KEY in text and not any(spelling in text for spelling in WRONG):
            return replace(form, before=text.rpartition(RESULT)[2] if RESULT in text else "")
    return ToolForm()


def changed(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with every text in it changed, names of fields too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(name): changed(inner, change) for name, inner in value.items()}
    return [changed(inner, change) for inner in value] if isinstance(value, list) else value


class Pieces:
    """The parts of an example that a template may leave out: each is pinned with its number, and looked for."""

    def __init__(self, marks: Marks) -> None:
        self._marks = marks
        self._said: list[str] = []

    def pinned(self, example: Example) -> Example:
        """The example with a pin and a number behind each part."""
        schemas = json.loads(example.tools) if example.tools else []
        for schema in schemas:
            name = schema["function"]["name"]
            schema["function"]["name"] = self._pin(name, f"the schema of the tool {name!r}")
        tools = json.dumps(schemas, ensure_ascii=False) if schemas else ""
        return replace(example, turns=tuple(map(self._turn, example.turns)), tools=tools)

    def left_out(self, rendered: str) -> str:
        """The first part that `rendered` does not hold, in words; "" where it holds all."""
        pin = re.escape(self._marks.pin)
        found = {int(number) for number in re.findall(rf"{pin}(\d+){pin}", rendered)}
        return next((said for number, said in enumerate(self._said) if number not in found), "")

    def _turn(self, turn: Turn) -> Turn:
        results = tuple(replace(part, content=self._pin(part.content, "a tool's result")) for part in turn.results)
        output = turn.output
        if turn.calls and output:
            output = self._pin(output, "what the assistant says before it calls a tool")
        return replace(turn, output=output, results=results, calls=tuple(map(self._call, turn.calls)))

    def _call(self, call: Call) -> Call:
        of_call = f"the call of the tool {call.name!r}"
        name = self._pin(call.name, of_call)
        named = {
            self._pin(key, f"the arguments in {of_call}"): inner for key, inner in json.loads(call.arguments).items()
        }
        return replace(call, name=name, arguments=json.dumps(named, ensure_ascii=False))

    def _pin(self, text: str, said: str) -> str:
        self._said.append(said)
        return self._marks.pinned(text, f"{self._marks.pin}{len(self._said) - 1}{self._marks.pin}")
