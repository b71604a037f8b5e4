"""Which rows are near copies of some given rows, exactly and in time that grows with the number of rows alone.

Near copies are those of `alpaca.data.duplicates`: question and answer overlap by ALIKE each. There, all rows are
compared with all others, and hashes guess the pairs. Here, few rows are compared with many, and no pair is missed: a
text whose shingles overlap with another's by 80 % lacks at most 20 % of its own in the other, so of any fifth of them,
and one more, at least one is in both (prefix filtering: Chaudhuri, Ganti & Kaushik, 2006). The fifth that is rarest
among the given rows leaves next to nothing to compare.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alpaca.data.duplicates import ALIKE, alike, answer_of, question_and_answer, question_of, shingles
from alpaca.prompts.example import Example


class NearCopies:
    """Finds out whether a row is a near copy of one of `rows`."""

    def __init__(self, rows: Sequence[Example]) -> None:
        self._texts = [question_and_answer(row) for row in rows]
        self._questions = _Shingles([question for question, _ in self._texts])
        self._answers = _Shingles([answer for _, answer in self._texts])

    def has(self, row: Example) -> bool:
        """Whether one of the rows says the same as `row`."""
        question = question_of(row)
        found = self._questions.sharing(question)
        if not len(found):
            return False
        answer = answer_of(row)
        found = np.intersect1d(found, self._answers.sharing(answer), assume_unique=True)
        return any(alike((question, answer), self._texts[number]) for number in found)


class _Shingles:
    """In which of some texts each shingle stands. Arrays of one length: `shingles` (uint64, each once, in order) with
    the place where its texts begin in `texts`, and how many they are."""

    def __init__(self, texts: Sequence[str]) -> None:
        each = [np.unique(shingles(text)) for text in texts]
        whole = np.concatenate(each) if each else np.empty(0, np.uint64)
        owners = np.repeat(np.arange(len(each)), [len(part) for part in each])
        order = np.argsort(whole, kind="stable")
        self.texts = owners[order]
        self.shingles, self.starts, self.counts = np.unique(whole[order], return_index=True, return_counts=True)

    def sharing(self, text: str) -> np.ndarray:
        """The numbers of the texts that may overlap with `text` by ALIKE, each once."""
        nothing = np.empty(0, np.int64)
        if not len(self.shingles):
            return nothing
        own = np.sort(shingles(text))
        own = own[np.concatenate(([True], own[1:] != own[:-1]))]
        places = np.minimum(np.searchsorted(self.shingles, own), len(self.shingles) - 1)
        places = places[self.shingles[places] == own]
        unknown, needed = len(own) - len(places), int((1 - ALIKE) * len(own) + 1e-9) + 1
        if unknown >= needed:  # of so many, at least one is in a text that overlaps
            return nothing
        rarest = places[np.argsort(self.counts[places], kind="stable")[: needed - unknown]]
        return np.unique(np.concatenate([self.texts[self.starts[at] :][: self.counts[at]] for at in rarest]))
