"""Rows that say the same: exact copies, near copies, and one question with several answers.

Near copies are found with MinHash (Broder, 1997): the smallest of many hashes of a text's shingles agrees between two
texts as often as their sets of shingles overlap (the Jaccard index). Shingles are windows of bytes of UTF-8, so that
scripts without spaces between words need no treatment of their own.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alpaca.prompts.example import Example

if TYPE_CHECKING:
    import numpy as np

SHINGLE = 8  # bytes: about a word and a half of English, two or three characters of Chinese
HASHES, BANDS = 64, 16
ALIKE = 0.8  # both the question and the answer must overlap by this much
LIKELY = 0.65  # agreement of the signatures from which two rows are compared in full
AT_ONCE = 32_768  # shingles hashed at a time: what a very long text takes in memory has a limit
NOT_WORDS = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Row numbers in groups of at least two, each in the order of the file.

    `exact`: equal in every part. `near`: question and answer nearly equal; of exact copies only the first takes part.
    `answers`: the same question with different answers, those of near copies apart.
    """

    exact: list[list[int]]
    near: list[list[int]]
    answers: list[list[int]]


def find_duplicates(examples: Sequence[Example]) -> Duplicates:
    """Compare all examples with each other, in time that grows with their number, not with its square."""
    exact = _groups((example.key(), number) for number, example in enumerate(examples))
    copies = {number for group in exact for number in group[1:]}
    distinct = [number for number in range(len(examples)) if number not in copies]
    texts = [question_and_answer(examples[number]) for number in distinct]
    near = [[distinct[member] for member in group] for group in _near(texts)]
    known = {number: group[0] for group in near for number in group}
    same = _groups((texts[place][0], number) for place, number in enumerate(distinct) if not examples[number].raw)
    answers = [group for group in same if len({known.get(number, number) for number in group}) > 1]
    exact, near, answers = ([[examples[n].row for n in g] for g in groups] for groups in (exact, near, answers))
    return Duplicates(exact, near, answers)


def _groups(keyed: Iterable[tuple[str, int]]) -> list[list[int]]:
    groups: dict[str, list[int]] = {}
    for key, number in keyed:
        groups.setdefault(key, []).append(number)
    return [group for group in groups.values() if len(group) > 1]


def question_and_answer(example: Example) -> tuple[str, str]:
    """What is compared of a row, each without what doesn't matter."""
    return question_of(example), answer_of(example)


def question_of(example: Example) -> str:
    """What a row gives, without what doesn't matter."""
    return _plain([example.system, example.tools, *(text for turn in example.turns for text in turn.given)])


def answer_of(example: Example) -> str:
    """What a row answers, without what doesn't matter."""
    return _plain(text for turn in example.turns for text in turn.written)


def _plain(texts: Iterable[str]) -> str:
    """Letters and digits in small letters: what is left where punctuation, spaces and case don't matter."""
    joined = "\n".join(texts)
    return NOT_WORDS.sub(" ", joined.casefold()).strip() or joined.strip()


def _near(texts: Sequence[tuple[str, str]]) -> list[list[int]]:
    import numpy as np

    if len(texts) < 2:
        return []
    signatures = np.stack([_signature(f"{question} {answer}") for question, answer in texts])
    leader = list(range(len(texts)))

    def root(number: int) -> int:
        while leader[number] != number:
            leader[number] = number = leader[leader[number]]
        return number

    for one, other in _candidates(signatures):
        first, second = sorted((root(one), root(other)))
        if first != second and alike(texts[one], texts[other]):
            leader[second] = first
    return _groups((str(root(number)), number) for number in range(len(texts)))


def _candidates(signatures: np.ndarray) -> Iterable[tuple[int, int]]:
    """Pairs that agree in a band of hashes and, by all hashes, are likely alike.

    Within a band, a row is compared with the one before it and with the first that has the same hashes: rows that are
    copies of one another form a chain, so that a thousand copies cost two thousand comparisons and not half a million.
    """
    import numpy as np

    pairs: list[np.ndarray] = []
    width = HASHES // BANDS
    for band in range(BANDS):
        keys = np.ascontiguousarray(signatures[:, band * width : (band + 1) * width]).view(f"V{4 * width}").ravel()
        _, group = np.unique(keys, return_inverse=True)
        order = np.argsort(group, kind="stable")
        same = group[order[1:]] == group[order[:-1]]
        starts = np.maximum.accumulate(np.where(np.concatenate([[True], ~same]), np.arange(len(order)), 0))
        pairs.append(np.stack([order[:-1], order[1:]], axis=1)[same])
        pairs.append(np.stack([order[starts[1:]], order[1:]], axis=1)[same])
    found = np.unique(np.concatenate(pairs), axis=0)
    agree = np.zeros(len(found))
    for column in range(HASHES):
        agree += signatures[found[:, 0], column] == signatures[found[:, 1], column]
    return map(tuple, found[agree >= LIKELY * HASHES].tolist())


def shingles(text: str) -> np.ndarray:
    """A 64-bit number for each window of SHINGLE bytes; one for a shorter text."""
    import numpy as np

    data = text.encode("utf-8", "replace").ljust(SHINGLE, b"\0")
    windows: np.ndarray = np.ndarray(len(data) - SHINGLE + 1, np.uint64, data, strides=(1,))
    return windows.copy()


def _signature(text: str) -> np.ndarray:
    """The smallest value of each of HASHES hashes over the text's shingles, uint32 (HASHES,)."""
    import numpy as np

    multipliers = _multipliers()
    mixed = shingles(text) * np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing; the high half is well mixed
    low = ((mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(32)).astype(np.uint32)
    parts = [low[start : start + AT_ONCE] for start in range(0, len(low), AT_ONCE)]
    return np.min([(multipliers[:, None] * part).min(axis=1) for part in parts], axis=0)


@functools.cache
def _multipliers() -> np.ndarray:
    import numpy as np

    return np.random.default_rng(0).integers(0, 2**31, HASHES, dtype=np.uint32) * np.uint32(2) + np.uint32(1)


def alike(one: tuple[str, str], other: tuple[str, str]) -> bool:
    """Whether two rows say the same: both their questions and their answers overlap by ALIKE."""
    return all(a == b or _overlap(a, b) >= ALIKE for a, b in zip(one, other, strict=True))


def _overlap(one: str, other: str) -> float:
    """The Jaccard index of two texts' shingles, from 0 to 1."""
    import numpy as np

    a, b = np.unique(shingles(one)), np.unique(shingles(other))
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)
