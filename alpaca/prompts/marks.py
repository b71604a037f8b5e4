"""Marks in the texts of a conversation, to find them again in what a chat template makes of them."""

from __future__ import annotations

import re
from typing import NamedTuple

from alpaca.errors import BadMessages
from alpaca.prompts.example import Example
from alpaca.prompts.template import Segment


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
