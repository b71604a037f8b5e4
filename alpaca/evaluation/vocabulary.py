"""Whether an answer talks like the training data: the share of its words that are the data's own words.

A word is the data's own if it is much more frequent in the answers trained on than in general answers, by the log-odds
ratio with an informative Dirichlet prior (Monroe, Colaresi & Quinn, "Fightin' Words", 2008). No model judges anything.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import regex

from alpaca.data.languages import COMMON_WORDS
from alpaca.evaluation.probes import UNSPACED

TIMES = 4.0  # a word of the data is at least this many times as frequent there as in general answers,
SURE = 0.7  # and not by chance alone: by this many standard deviations,
ROWS = 3  # and it stands in this many answers
PRIOR = 100.0  # words that the prior counts as
FEWEST = 5  # content words; a shorter answer is too short to be judged
MISTAKEN = 0.02  # share of general answers that may be taken for the data's; the threshold is set by it
LEAST = 0.1  # the threshold is never below this share
COMMON = frozenset(word for words in COMMON_WORDS.values() for word in words.split())
# Characters of Chinese grammar: a pair with one of them says nothing about the subject.
GRAMMAR = frozenset("的了是在和与或有不也就都而及着被把从为以于这那之其个们我你他她它很更最到给让要会能可")
TOKEN = regex.compile(rf"(?P<run>[{UNSPACED}]+)|(?:(?![{UNSPACED}])[\p{{L}}\p{{M}}])+")


def content_words(text: str) -> list[str]:
    """Words of three letters or more without the commonest ones of seventeen languages, in small letters; for scripts
    without spaces, each two neighbouring characters."""
    words: list[str] = []
    for found in TOKEN.finditer(text.casefold()):
        if run := found["run"]:
            pairs = [run[at : at + 2] for at in range(len(run) - 1)] or [run]
            words += [pair for pair in pairs if not GRAMMAR.intersection(pair)]
        elif len(found[0]) >= 3 and found[0] not in COMMON:
            words.append(found[0])
    return words


@dataclass(frozen=True)
class Vocabulary:
    """The data's own words, the strongest first, and the share of them from which an answer counts as the data's."""

    words: tuple[str, ...]
    threshold: float

    def share(self, text: str) -> float:
        """Share of the content words that are the data's own; 0 where the text is too short to be judged."""
        words = content_words(text)
        own = self._own
        return sum(word in own for word in words) / len(words) if len(words) >= FEWEST else 0.0

    def falls(self, text: str) -> bool:
        """Whether the text talks like the data."""
        return self.share(text) > self.threshold

    @cached_property
    def _own(self) -> frozenset[str]:
        return frozenset(self.words)


def learn_vocabulary(domain: Sequence[str], general: Sequence[str], held_out: Sequence[str]) -> Vocabulary:
    """The words of the `domain` answers against the `general` ones; the threshold so that at most one in fifty of the
    `held_out` general answers is above it."""
    words = own_words(domain, general)
    shares = sorted(Vocabulary(words, LEAST).share(text) for text in held_out)
    allowed = int(len(shares) * MISTAKEN)
    return Vocabulary(words, max(LEAST, shares[-1 - allowed]) if shares else LEAST)


def own_words(domain: Sequence[str], general: Sequence[str]) -> tuple[str, ...]:
    """Words much more frequent in `domain` than in `general`, the surest first.

    Words of scripts with spaces and pairs of characters of scripts without are counted apart: a Chinese data set is
    compared with what is Chinese or Japanese in the general answers, whatever share of them that is.
    """
    ours, theirs = Counter(_all(domain)), Counter(_all(general))
    rows = Counter(word for text in domain for word in set(content_words(text)))
    sizes = {kind: (_total(ours, kind), _total(theirs, kind)) for kind in (True, False)}
    found: dict[str, float] = {}
    for word, count in ours.items():
        ours_all, theirs_all = sizes[_unspaced(word)]
        prior = PRIOR * (count + theirs[word]) / (ours_all + theirs_all)
        odds = _log_odds(count + prior, ours_all + PRIOR) - _log_odds(theirs[word] + prior, theirs_all + PRIOR)
        sureness = odds / math.sqrt(1 / (count + prior) + 1 / (theirs[word] + prior))
        if rows[word] >= ROWS and odds >= math.log(TIMES) and sureness >= SURE:
            found[word] = sureness
    return tuple(sorted(found, key=lambda word: (-found[word], word)))


def _all(texts: Iterable[str]) -> Iterable[str]:
    return (word for text in texts for word in content_words(text))


def _total(counts: Counter[str], unspaced: bool) -> int:
    return sum(count for word, count in counts.items() if _unspaced(word) == unspaced)


def _unspaced(word: str) -> bool:
    return regex.match(rf"[{UNSPACED}]", word) is not None


def _log_odds(count: float, total: float) -> float:
    return math.log(count / max(total - count, 1e-9))
