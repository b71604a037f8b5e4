"""Raw text in pieces that fit: every token once, cut where a reader would pause.

A text is tokenised whole, and its ids are cut. So its tokens are those that it has anywhere else, and nothing is lost
or doubled, whatever the tokenizer does at the edges of a text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from alpaca.prompts.example import Example
from alpaca.prompts.template import Segment

BLOCK = 100_000  # characters that are tokenised at once, so that a book keeps all cores busy and memory small
BETWEEN_WORDS = re.compile(r"(?<=\w) (?=\w)")
LEAST = 4  # a piece has at least a quarter of the tokens that it may have, else a heading would be one
BACK = 8  # tokens of blanks that are looked through for the end of a paragraph
ENDS = ".!?…。！？؟।۔"  # of a sentence
WIDE = "。！？"  # after which the next sentence begins without a blank
CLOSING = "\"'”’»«)]）」』*_"  # what may stand after it


class Pause(IntEnum):
    """How good a place to cut is."""

    NONE = 0
    WORD = 1
    SENTENCE = 2
    LINE = 3  # the end of a sentence that is the end of a line too: a paragraph, in files with one on each line
    PARAGRAPH = 4


class Cutter:
    """Cuts the ids of one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._spelled: dict[int, str] = {}

    def pieces(self, ids: Sequence[int], most: int) -> list[list[int]]:
        """`ids` in pieces of at most `most`, each of which begins with the last token of the one before: a first token
        is never trained, so every token is trained once. A piece ends with a paragraph if one ends in its last three
        quarters, else with a sentence, else with a word."""
        most = max(most, 2)
        found = []
        start = 0
        while len(ids) - start > most:
            end = self._end(ids, start + max(2, most // LEAST), start + most)
            found.append(list(ids[start:end]))
            start = end - 1
        return [*found, list(ids[start:])]

    def _end(self, ids: Sequence[int], first: int, last: int) -> int:
        """The best place from `first` to `last`, and the last one of those."""
        best, where = Pause.NONE, last
        for place in range(last, first - 1, -1):
            pause = self._pause(ids, place)
            if pause > best:
                best, where = pause, place
            if best == Pause.PARAGRAPH:
                break
        return where

    def _pause(self, ids: Sequence[int], place: int) -> Pause:
        """What ends before the token at `place`."""
        following = self._spelling(ids[place])
        if following.startswith("\n"):  # a paragraph ends after its blank line
            return Pause.NONE
        before = ""
        for token in reversed(ids[max(0, place - BACK) : place]):
            before = self._spelling(token) + before
            if not before.isspace():
                break
        words = before.rstrip()
        breaks = before.count("\n", len(words))
        if breaks > 1:
            return Pause.PARAGRAPH
        ended = words.rstrip(CLOSING)[-1:]
        apart = len(words) < len(before) or following[:1].isspace()
        if ended and ended in ENDS and (apart or ended in WIDE):
            return Pause.LINE if breaks else Pause.SENTENCE
        return Pause.WORD if apart else Pause.NONE

    def _spelling(self, token: int) -> str:
        """The token as it stands in a text, its blanks included."""
        if token not in self._spelled:
            written = self._tokenizer.convert_ids_to_tokens(token) or ""
            self._spelled[token] = (
                written.replace("▁", " ")  # SentencePiece; decoded alone, its token loses the blank
                if "▁" in written
                else self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
            )
        return self._spelled[token]


def raw_segments(example: Example) -> list[Segment]:
    """The text of an example to tokenise, with what joins it to the passage before."""
    place = example.place
    text = (place.joint if place else "") + (example.turns[0].output or "")
    return [Segment(block, False, ((0, len(block)),)) for block in _blocks(text)]


def _blocks(text: str) -> list[str]:
    """A long text in blocks, cut before a blank between two words, where every tokenizer would."""
    blocks = []
    start = 0
    while len(text) - start > BLOCK:
        places = [found.start() for found in BETWEEN_WORDS.finditer(text, start + BLOCK - 1000, start + BLOCK)]
        end = places[-1] if places else start + BLOCK
        blocks.append(text[start:end])
        start = end
    return [*blocks, text[start:]]
