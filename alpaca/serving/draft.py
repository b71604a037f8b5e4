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

ROWS = {"cpu": 16, "cuda": 64}
"""Rows of a step that guesses may fill up: with more, each row costs about as much as a token's own step would."""
LONGEST = 15  # guesses at a time
GRAM = 3  # tokens that must have occurred before; GRAM - 1 will do where that many have not

# What guesses may cost an answer, in rows of a step
START = 8.0
PRICE = 2  # of a guess, whatever its length, on top of its rows
EARNED = 8.0  # by every token that was guessed right
ALLOWED = 0.16  # for every token: a fiftieth of a step


class Drafter:
    """Guesses for one answer, as long as they were right lately.

    Rows are paid for from a credit, which right guesses fill up and wrong ones use up. Once it is used up it grows by
    little with every token: that is how much slower an answer may get whose guesses are always wrong.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._text = "".join(map(chr, tokens))
        self._credit = START

    def guess(self, longest: int) -> list[int]:
        """Up to `longest` tokens that may come next; often none. Fewer are always the first of more."""
        length = min(longest, LONGEST, int(self._credit) - PRICE)
        return [ord(token) for token in look_up(self._text, length)] if length > 0 else []

    def learn(self, tokens: Sequence[int], guessed: int, right: int) -> None:
        """The answer goes on with `tokens`; of `guessed` ones `right` were."""
        self._text += "".join(map(chr, tokens))
        spent = PRICE + guessed if guessed else 0
        self._credit = min(self._credit + ALLOWED * len(tokens) + EARNED * right - spent, LONGEST + PRICE)


def look_up(text: str, length: int) -> str:
    """What followed the last time that the text's end occurred before, `length` tokens of it; "" without any.

    A token is a character, the one with its number: nothing finds a sequence faster than str.rfind. What overlaps with
    its earlier occurrence is a loop, and the guess is that it goes on.
    """
    for size in (GRAM, GRAM - 1):
        found = text.rfind(text[-size:], 0, -1)
        if found >= 0 and size < len(text):
            after = text[found + size :]
            return (after * (length // len(after) + 1))[:length]
    return ""


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
