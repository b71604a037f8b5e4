"""A turn of a conversation: what was asked and what was answered, and the tools that were called in between."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from alpaca.words import type_name

UNWRITABLE = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Call:
    """A tool that the assistant calls. `arguments`: a JSON object as text; `id`: what a result names it by, or ""."""

    name: str
    arguments: str = "{}"
    id: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What a tool answered. `name` is the tool's and `id` the call's, "" where the row does not say."""

    content: str
    name: str = ""
    id: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """What was asked, with an optional input, and the answer; `output` is None where the answer is awaited.

    `calls`: the tools that the answer calls, after what it says. `results`: what they said, which is what the next turn
    is asked in place of an instruction.
    """

    instruction: str
    input: str = ""
    output: str | None = None
    calls: tuple[Call, ...] = ()
    results: tuple[Result, ...] = ()

    @property
    def question(self) -> str:
        """Instruction and input as one text."""
        return f"{self.instruction}\n\n{self.input}" if self.input.strip() else self.instruction

    @property
    def given(self) -> tuple[str, ...]:
        """All texts that the model is given."""
        return (self.instruction, self.input, *(result.content for result in self.results))

    @property
    def written(self) -> tuple[str, ...]:
        """All texts that the model writes."""
        return (self.output or "", *(f"{call.name} {call.arguments}" for call in self.calls))

    @property
    def is_blank(self) -> bool:
        """Whether there is nothing to learn from the answer."""
        return not any(text.strip() for text in self.written)

    def answered(self, text: str | None) -> Turn:
        """The same question with another answer; None awaits one."""
        return replace(self, output=text, calls=())


def text_problem(value: object) -> str | None:
    """Why `value` can't be a text, or None where it can: not a string, half a surrogate pair, or a NUL."""
    if not isinstance(value, str):
        return f"is {type_name(value)}, not text"
    if found := UNWRITABLE.search(value):
        what = "a NUL character" if found[0] == "\x00" else "half a character (a lone surrogate)"
        return f"holds {what}, \\u{ord(found[0]):04x}, at position {found.start() + 1}"
    return None
