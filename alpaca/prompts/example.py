"""The example: one conversation of one or more turns, whatever form its row had."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from alpaca.prompts.messages import read_messages
from alpaca.prompts.turn import Turn, text_problem

__all__ = ["Example", "Place", "Turn", "text_problem"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a part of a longer text stands: its first and last passage, counted from 0, and what joins it to the text
    before it. `ends`: the whole text ends with it."""

    first: int
    last: int
    joint: str = ""
    ends: bool = False


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation. `row` is the 1-based number of its row in the file it came from, 0 for none.

    `raw`: no conversation but plain text, which is the output of a single turn without a question. It is trained as it
    stands, every token of it, without a template. `tools`: the schemas of the tools that may be called, a JSON list as
    text, or "". `place`: of raw text that is part of a longer one.
    """

    turns: tuple[Turn, ...]
    system: str = ""
    row: int = 0
    raw: bool = False
    tools: str = ""
    place: Place | None = None

    @classmethod
    def single(
        cls, instruction: str, input: str = "", output: str | None = None, *, system: str = "", row: int = 0
    ) -> Example:
        """An example of one turn."""
        return cls((Turn(instruction, input, output),), system, row)

    @classmethod
    def text(cls, text: str, *, row: int = 0, place: Place | None = None) -> Example:
        """Plain text to train on as it stands."""
        return cls((Turn("", "", text),), row=row, raw=True, place=place)

    @classmethod
    def from_messages(cls, messages: Sequence[Mapping[str, Any]], *, row: int = 0) -> Example:
        """A conversation in chat form: an optional system message, then user and assistant in turn, tools in between.

        The last turn may lack its answer (that is what serving asks for). Raises BadMessages with the number of
        the first message at fault.
        """
        system, turns = read_messages(messages)
        return cls(turns, system, row)

    @property
    def is_pair(self) -> bool:
        """Whether it is a question and its answer and nothing else."""
        return len(self.turns) == 1 and not self.system.strip() and not self.uses_tools

    @property
    def uses_tools(self) -> bool:
        """Whether only a template that can write tools can write this."""
        return bool(self.tools) or any(turn.calls or turn.results for turn in self.turns)

    @property
    def texts(self) -> list[str]:
        """All that stands in it, names and ids among it."""
        found = [self.system, self.tools]
        for turn in self.turns:
            found += (*turn.given, *turn.written)
            found += (name for call in turn.calls for name in (call.name, call.id))
            found += (name for result in turn.results for name in (result.name, result.id))
        return found

    def messages(self) -> list[dict[str, Any]]:
        """The conversation in chat form, as OpenAI writes it: a call's arguments are JSON as text."""
        said: list[dict[str, Any]] = [{"role": "system", "content": self.system}] if self.system.strip() else []
        for turn in self.turns:
            for result in turn.results:
                named = {"name": result.name, "tool_call_id": result.id}
                said.append({"role": "tool", "content": result.content} | {k: v for k, v in named.items() if v})
            if not turn.results:
                said.append({"role": "user", "content": turn.question})
            if turn.output is None:
                continue
            said.append({"role": "assistant", "content": turn.output})
            if turn.calls:
                said[-1]["tool_calls"] = [
                    ({"id": call.id} if call.id else {})
                    | {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                    for call in turn.calls
                ]
        return said

    def awaiting(self) -> Example:
        """The same up to where its last answer begins."""
        return self.answered(None)

    def answered(self, text: str | None) -> Example:
        """The same with another last answer; None awaits one."""
        return replace(self, turns=(*self.turns[:-1], self.turns[-1].answered(text)))

    def key(self) -> str:
        """A hash of the content (not of the row number): equal for equal examples, on every machine."""
        said: list[Any] = [self.system, [(turn.instruction, turn.input, turn.output) for turn in self.turns]]
        if self.raw:
            said.append("raw")
        if self.uses_tools:
            calls = [[(call.name, call.arguments, call.id) for call in turn.calls] for turn in self.turns]
            results = [[(result.content, result.name, result.id) for result in turn.results] for turn in self.turns]
            said += ["tools", self.tools, calls, results]
        return hashlib.blake2b(json.dumps(said).encode("ascii"), digest_size=16).hexdigest()
