"""Answers asked after the questions of other rows: what is left of their likelihood tells how much a question says.

The question of a row is all that stands before its last answer, a system text and earlier turns among it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from alpaca.prompts.encode import Encoded

SEED = 0


@dataclass(frozen=True)
class ForeignRows:
    """Answers after other rows' questions: `rows[n]` is the answer of the row at `places[n]`, the `ranks[n]`-th time
    (from 0). A row's tokens of the answer are those that it has after its own question."""

    rows: list[Encoded]
    places: np.ndarray
    ranks: np.ndarray

    @property
    def answers(self) -> np.ndarray:
        """The places of the rows whose answers are among them, in order."""
        return np.unique(self.places)

    def chosen(self, rows: int, others: int) -> np.ndarray:
        """Which of them belong to the first `rows` rows and `others` questions: indices of `self.rows`."""
        return np.flatnonzero((self.places < rows) & (self.ranks < others))

    def pick(self, chosen: np.ndarray) -> ForeignRows:
        """Some of them, by their indices."""
        return ForeignRows([self.rows[index] for index in chosen], self.places[chosen], self.ranks[chosen])


def foreign_rows(
    rows: Sequence[Encoded], others: int, most_tokens: int, *, answers: int | None = None, groups: Sequence[str] = ()
) -> ForeignRows:
    """Put the last answers of `rows` behind the questions of up to `others` other rows each, chosen by a fixed seed.

    Left out are questions that are the row's own, or whose answer is the same, and what would have more than
    `most_tokens`. `answers`: only those of the first rows; all give their questions. `groups`: names one group for each
    row, such as the language; questions come from a row's own group as far as it has them. Raw text has no question.
    """
    found: list[Encoded] = []
    places: list[int] = []
    ranks: list[int] = []
    for place, row in enumerate(rows[:answers]):
        for rank, other in zip(range(others), _others(rows, place, most_tokens, groups), strict=False):
            found.append(after(other, row))
            places.append(place)
            ranks.append(rank)
    return ForeignRows(found, np.array(places, dtype=np.int64), np.array(ranks, dtype=np.int64))


def own_answer(row: Encoded) -> Encoded:
    """The row with its last answer alone to be measured."""
    return Encoded(row.input_ids, row.trained[-1:], row.row)


def after(other: Encoded, row: Encoded) -> Encoded:
    """The last answer of `row`, token for token, after the question of `other`."""
    question, answer = _question(other), _answer(row)
    return Encoded([*question, *answer], [(len(question), len(question) + len(answer))], row.row)


def has_question(row: Encoded) -> bool:
    """Whether anything stands before the last answer but a first token; in raw text nothing does."""
    return bool(row.trained) and row.trained[-1][0] > 1


def _others(rows: Sequence[Encoded], place: int, most_tokens: int, groups: Sequence[str]) -> Iterator[Encoded]:
    """Rows whose questions may be put before the answer at `place`, in the order in which they are taken."""
    row = rows[place]
    if not has_question(row):
        return
    question, answer = _question(row), _answer(row)
    seen = {tuple(question)}
    order = np.random.default_rng([SEED, place]).permutation(len(rows)).tolist()
    if groups:
        order.sort(key=lambda number: groups[number] != groups[place])
    for other in map(rows.__getitem__, order):
        if not has_question(other) or other.trained[-1][0] + len(answer) > most_tokens:
            continue
        asked = tuple(_question(other))
        if asked not in seen and _answer(other) != answer:
            seen.add(asked)
            yield other


def _question(row: Encoded) -> list[int]:
    return row.input_ids[: row.trained[-1][0]]


def _answer(row: Encoded) -> list[int]:
    start, end = row.trained[-1]
    return row.input_ids[start:end]
