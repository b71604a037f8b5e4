"""Plain text: a file without rows, read as passages, and put together again to what a training holds out or trains on.

A *passage* is a paragraph, or, of a paragraph that is very long, some of its lines. That is what is counted, looked at
and named, by the line on which it begins. A *section* is several passages one after the other, about a page: a single
paragraph held out between two that are trained on would say little about text that the training never saw.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from alpaca.prompts.example import Example, Place

LONGEST = 1000  # characters of a passage, unless one line has more: longer paragraphs are taken apart at line ends
SECTION = 2000  # characters of a section, roughly
FEWEST_SECTIONS = 40  # of a short text, so that something can be held out
BLANK_LINE, NEW_LINE = "\n\n", "\n"


class Passage(dict[str, Any]):
    """A row {text} that is a passage of a longer text."""

    def __init__(self, text: str, place: Place) -> None:
        super().__init__(text=text)
        self.place = place


def passages(text: str) -> Iterator[tuple[int, Passage]]:
    """(the line on which it begins, the passage) for all that `text` holds.

    Line ends are made one kind, blank lines between paragraphs one blank line, and those at the edges none. All else
    stays: every passage's joint and text in a row are the whole text again.
    """
    before: tuple[int, str, str] | None = None
    number = 0
    for line, joint, words in _passages(text.replace("\r\n", "\n").replace("\r", "\n").split("\n")):
        if before is not None:
            yield before[0], Passage(before[2], Place(number, number, before[1]))
            number += 1
        before = line, joint if before else "", words
    if before is not None:
        yield before[0], Passage(before[2], Place(number, number, before[1], ends=True))


def _passages(lines: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """(line, what stands before it, text) of each passage."""
    joint, begun, size, held = BLANK_LINE, 0, 0, list[str]()
    for number, line in enumerate(lines, 1):
        blank = not line.strip()
        if held and (blank or size + len(line) > LONGEST):
            yield begun, joint, "\n".join(held)
            joint, size, held = NEW_LINE, 0, []
        if blank:
            joint = BLANK_LINE
            continue
        begun = begun if held else number
        size += len(line) + 1
        held.append(line)
    if held:
        yield begun, joint, "\n".join(held)


def in_sections(examples: Sequence[Example]) -> list[Example]:
    """The same with passages that follow each other put together to sections; other examples as they are."""
    size = sum(len(example.turns[-1].output or "") for example in examples if example.place)
    return _in_runs(examples, min(SECTION, size // FEWEST_SECTIONS))


def joined(examples: Iterable[Example]) -> list[Example]:
    """The same with all that follows each other in the text as one example."""
    return _in_runs(examples, math.inf)


def _in_runs(examples: Iterable[Example], most: float) -> list[Example]:
    """The same with what follows each other put together, until a run has `most` characters."""
    runs: list[list[Example]] = []
    held = 0
    for example in examples:
        if not (held < most and runs and _follows(example, runs[-1][-1])):
            runs.append([])
            held = 0
        runs[-1].append(example)
        held += len(example.turns[-1].output or "")
    return [_together(run) for run in runs]


def _follows(example: Example, before: Example) -> bool:
    return bool(example.place and before.place and example.place.first == before.place.last + 1)


def _together(examples: Sequence[Example]) -> Example:
    """One example of those that follow each other."""
    first, last = examples[0].place, examples[-1].place
    if first is None or last is None or len(examples) == 1:
        return examples[0]
    parts = [examples[0].turns[0].output or ""]
    for example in examples[1:]:
        parts += [example.place.joint if example.place else "", example.turns[0].output or ""]
    place = Place(first.first, last.last, first.joint, last.ends)
    return Example.text("".join(parts), row=examples[0].row, place=place)
