"""Drafts: the next tokens guessed from what the prompt and the answer so far hold, and checked in one step.

An answer that repeats its input (a rewrite, an extract, edited code) often goes on as the text did where its last
tokens stood before. On most machines a step of a few more rows takes hardly longer, so the guesses stand in the step
behind the answer's last token, as a prompt's tokens do. A row's logits are those the answer would have without
guesses, provided that the guesses before it are right. So a token is chosen from the first row as ever; where it is
the guess, another one from the next row; and so on. Guesses decide how many tokens a step gives, and never which.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from torch import Tensor

from alpaca.serving.sampling import Sampler, choose

ROWS = {"cpu": 16, "cuda": 0}
"""Rows up to which guesses fill a step; beyond, a row costs an answer about as much as its own next step would. On a
GPU there are none: a step with guesses has no fixed shape (alpaca/serving/graphs.py)."""
ROWS_OF_FEW_BITS = 8
"""The same where weights are quantised on a CPU: their products are for few rows (alpaca/serving/quantized.py)."""
LONGEST = 15
"""Guesses at a time."""
SEEN = (2, 8)  # how many tokens must have occurred before in the same order, and how many are looked at

# What an answer may spend, in guesses (benchmarks/drafts.py shows what becomes of it)
START = 4.0
EARNED = 4.0  # by a guess that was right
ALLOWED = 0.25  # for a token, however it came: with wrong guesses only, an answer takes hardly 2 % longer


class Drafter:
    """Guesses for one answer, many while they are right and few while they are wrong.

    It spends them from a credit of LONGEST at most, which right ones fill up. With wrong ones it is soon used up, and
    grows so slowly then that they cost next to nothing.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._text = "".join(map(chr, tokens))
        self._credit = START
        self._found: list[int] | None = None

    def guess(self, longest: int) -> list[int]:
        """Up to `longest` tokens that may come next; often none. Until learn() is called, fewer begin as more do."""
        if longest < 1 or self._credit < 1:
            return []
        if self._found is None:
            self._found = [ord(token) for token in look_up(self._text)]
        return self._found[: min(longest, int(self._credit))]

    def learn(self, tokens: Sequence[int], guessed: int, right: int) -> None:
        """The answer goes on with `tokens`; `guessed` ones were tried, of which the first `right` were right."""
        self._text += "".join(map(chr, tokens))
        self._credit = min(self._credit - guessed + EARNED * right + ALLOWED * len(tokens), LONGEST)
        self._found = None


def look_up(text: str) -> str:
    """What followed when the text's end occurred before: as much of the end as can be found, and the last time. The
    longer it is, the surer the guess: up to twice as many tokens follow, "" where too little occurred before.

    A token is a character, the one with its number, since nothing finds a sequence faster than str.rfind. Where the
    text has come in a circle, the guess is that it goes on.
    """
    size, end = SEEN[0] - 1, len(text) - 1
    while size < SEEN[1] and (found := text.rfind(text[-size - 1 :], 0, end)) >= 0:
        size += 1
        end = found + size
    if size < SEEN[0]:
        return ""
    after, length = text[end:], min(LONGEST, 2 * size)
    return (after * (length // len(after) + 1))[:length]


def shared(wishes: Sequence[int], room: int) -> list[int]:
    """How much of `room` each one gets: all it wishes for, or as much as any other that wishes for more."""
    given = [0] * len(wishes)
    by_size = sorted(range(len(wishes)), key=wishes.__getitem__)
    for done, number in enumerate(by_size):
        given[number] = min(wishes[number], room // (len(wishes) - done))
        room -= given[number]
    return given


def check(logits: Tensor, samplers: Sequence[Sampler], drafts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The tokens each answer goes on with: its right guesses, and the token that is chosen after them.

    logits [rows, vocabulary]: for each answer a row for its next token, and one behind every guess.
    """
    firsts = list(accumulate((1 + len(draft) for draft in drafts), initial=0))
    chosen: list[list[int]] = [[] for _ in drafts]
    going = list(range(len(drafts)))
    while going:
        rows = [firsts[number] + len(chosen[number]) for number in going]
        tokens = choose(logits if len(rows) == len(logits) else logits[rows], [samplers[number] for number in going])
        for number, token in zip(going, tokens, strict=True):
            chosen[number].append(token)
        going = [number for number in going if chosen[number] == list(drafts[number][: len(chosen[number])])]
    return chosen
