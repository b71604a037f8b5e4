"""Marks in the texts of a conversation, to find them again in what a chat template makes of them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, NamedTuple

from alpaca.errors import BadMessages
from alpaca.prompts.example import Example
from alpaca.prompts.template import Segment
from alpaca.prompts.turn import Turn


class Marks(NamedTuple):
    """Three private-use characters that the conversation does not hold."""

    open: str
    close: str
    pin: str
    """Where a text ends, blanks not counted: templates cut those off."""

    @classmethod
    def unused(cls, example: Example) -> Marks:
        said = example.texts
        if not any(mark in text for mark in USUAL for text in said):
            return USUAL
        used = set().union(*said)
        free = (chr(code) for code in range(0xE000, 0xF900) if chr(code) not in used)
        try:
            return cls(next(free), next(free), next(free))
        except StopIteration:
            raise BadMessages("the text uses every private-use character there is") from None

    def around(self, spellings: re.Pattern[str], text: str) -> str:
        """`text` with marks around each of the spellings in it."""
        return spellings.sub(rf"{self.open}\g<0>{self.close}", text)

    def pinned(self, text: str, pin: str = "") -> str:
        """`text` with a pin at its end, before the blanks there."""
        bare = text.rstrip()
        return f"{bare}{pin or self.pin}{text[len(bare) :]}"

    def question_pinned(self, turn: Turn) -> Turn:
        """The turn with a pin at the end of what is asked."""
        if turn.results:
            *results, last = turn.results
            return replace(turn, results=(*results, replace(last, content=self.pinned(last.content))))
        field = "input" if turn.input.strip() else "instruction"
        changed: dict[str, Any] = {field: self.pinned(getattr(turn, field))}
        return replace(turn, **changed)

    def answer_pinned(self, turn: Turn) -> Turn:
        """The turn with a pin at the end of its answer: behind the name of its last call, where it calls tools."""
        if turn.calls:
            *calls, last = turn.calls
            return replace(turn, calls=(*calls, replace(last, name=self.pinned(last.name))))
        return turn if turn.output is None else replace(turn, output=self.pinned(turn.output))

    def ends_pinned(self, example: Example) -> Example:
        """The example with a pin at the end of every question and of every answer."""
        turns = (self.answer_pinned(self.question_pinned(turn)) for turn in example.turns)
        return replace(example, turns=tuple(turns))

    def find_own(self, token: str, text: str) -> int:
        """Where the template itself wrote `token`, or -1."""
        at = text.find(token)
        while at > 0 and text[at - 1] == self.open:
            at = text.find(token, at + 1)
        return at

    def segment(self, text: str, trained: bool) -> Segment:
        """Take the marks out again and note what stood between them."""
        first, *marked = text.split(self.open)
        pieces = [first.replace(self.close, "")]
        literal: list[tuple[int, int]] = []
        length = len(pieces[0])
        for stretch in marked:
            inside, _, after = stretch.partition(self.close)
            after = after.replace(self.close, "")  # left over where a template cut a text inside marks
            literal.append((length, length + len(inside)))
            pieces += (inside, after)
            length += len(inside) + len(after)
        return Segment("".join(pieces), trained, tuple(literal))


USUAL = Marks("\ue000", "\ue001", "\ue002")
