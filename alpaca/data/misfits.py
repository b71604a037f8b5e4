"""Rows whose answer does not fit their question, by what the base alone makes of them.

The base reads each answer after its own question and after the questions of two other rows of the same language. The
matter of a row is the loss of its answer after those less the loss after its own, in nats: how much its own question
tells about it. Of an answer that slipped to another row it is about what the choice of one foreign question or another
makes by chance, and those two say how much that is. A language is judged by itself, because a base that hardly knows it
is told little by its questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from alpaca.base.precision import choose_precision
from alpaca.data.languages import languages_of
from alpaca.device import pick_device
from alpaca.errors import NonFiniteLoss
from alpaca.progress import Say, progress
from alpaca.prompts.encode import Encoded
from alpaca.prompts.example import Example
from alpaca.prompts.foreign import foreign_rows, has_question, own_answer
from alpaca.words import duration, plural

if TYPE_CHECKING:
    from alpaca.data.yardstick import Yardstick

OTHERS = 2
FEWEST = 20  # rows of a language; with fewer nothing is known of what is usual in it
CHANCE = 1.0  # a score that chance often reaches: what is above is not listed
FAR = 2.8  # below the middle row's score: what is nearer to it is not listed (benchmarks/misfits.py has the figures)
BLIND = 0.2  # share of a language's rows whose question tells nothing, from which on the base is no judge of it
NORMAL = 0.6745  # the median of |x| for a normal x of spread 1
SEED = 0


@dataclass(frozen=True)
class Matter:
    """What the questions of `rows` (numbers of the source), all of one language, tell about their answers.

    `nats`: by how much the answer is likelier after its own question, summed over its `tokens`, float64 (n,). `spread`:
    of nats over the root of tokens, where chance alone chooses the questions.
    """

    language: str
    rows: list[int]
    nats: np.ndarray
    tokens: np.ndarray
    spread: float

    @property
    def per_token(self) -> np.ndarray:
        """Nats per token of the answer, float64 (n,)."""
        return self.nats / self.tokens

    @property
    def scores(self) -> np.ndarray:
        """Nats in units of what chance makes in an answer of that length, which grows with its root, float64 (n,)."""
        return self.nats / np.sqrt(self.tokens) / self.spread

    @property
    def blind(self) -> bool:
        """Whether the base is told too little by questions in this language to judge any row."""
        return not self.spread or float((self.scores <= 0).mean()) > BLIND

    def misfits(self) -> list[int]:
        """The places in `rows` of those that are listed: no better than chance, and far below the middle row."""
        if self.blind:
            return []
        return np.flatnonzero(self.scores <= min(CHANCE, float(np.median(self.scores)) - FAR)).tolist()


@dataclass(frozen=True)
class Look:
    """What a base was asked about rows, a language at a time, of `of` rows that there are."""

    base: str
    of: int
    languages: list[Matter] = field(default_factory=list)

    @property
    def asked(self) -> int:
        """How many rows it was asked about."""
        return sum(len(matter.rows) for matter in self.languages)

    @property
    def judged(self) -> list[Matter]:
        """The languages in which it can judge."""
        return [matter for matter in self.languages if not matter.blind]

    def misfits(self) -> dict[int, float]:
        """The nats per token of each row that is listed, by its number, in order."""
        listed = ((of.rows[place], float(of.per_token[place])) for of in self.languages for place in of.misfits())
        return dict(sorted(listed))

    def as_json(self) -> dict[str, Any]:
        """What each row's question tells, in nats per token of the answer, for a program to read."""
        told = ((row, nats) for of in self.languages for row, nats in zip(of.rows, of.per_token.tolist(), strict=True))
        return {
            "base": self.base, "of": self.of, "not_judged": [of.language for of in self.languages if of.blind],
            "rows": [{"row": row, "matter": round(nats, 4)} for row, nats in sorted(told)],
        }  # fmt: skip


@dataclass(frozen=True)
class Losses:
    """Summed losses of the answers of `rows`, all of one language: after their own questions (n,), after others
    (n, k), k ≥ 2; their tokens (n,)."""

    language: str
    rows: list[int]
    own: np.ndarray
    foreign: np.ndarray
    tokens: np.ndarray

    def matter(self) -> Matter:
        """What the first two of the other questions tell of the own one."""
        first, second = self.foreign[:, 0], self.foreign[:, 1]
        # A foreign question in the place of the own one would stand against the mean of two others, which varies less
        # than one: by a variance of 1 + 1/2 and not 1 + 1.
        apart = np.abs(first - second) / np.sqrt(self.tokens) * np.sqrt(3 / 4)
        nats = (first + second) / 2 - self.own
        return Matter(self.language, self.rows, nats, self.tokens, float(np.median(apart)) / NORMAL)


def look(examples: Sequence[Example], yardstick: Yardstick, most: int, say: Say) -> Look:
    """Ask the base about at most `most` rows, drawn by a fixed seed. Raises the errors of loading it, NonFiniteLoss."""
    losses = ask_base(sample(examples, most), yardstick, OTHERS, say)
    return Look(yardstick.base.name, len(examples), [found.matter() for found in losses])


def ask_base(examples: Sequence[Example], yardstick: Yardstick, others: int, say: Say) -> list[Losses]:
    """The losses of the rows of each language that has enough of them; none, and no base loaded, without one.

    A row takes part if it has a question and `others` more to exchange it for. Of a conversation it is the last answer.
    """
    encoded = {row.row: own_answer(row) for row in yardstick.encode(examples).examples if has_question(row)}
    exchanged = {
        name: _exchange([encoded[row] for row in numbers if row in encoded], others, yardstick.cutoff_len)
        for name, numbers in languages_of(examples).items()
    }
    exchanged = {name: found for name, found in exchanged.items() if len(found[0]) >= FEWEST}
    asked = [row for own, foreign in exchanged.values() for row in (*own, *foreign)]
    if not asked:
        return []
    losses = iter(_losses(yardstick, asked, others, say))
    found = []
    for name, (own, foreign) in exchanged.items():
        alone, after = [next(losses) for _ in own], [next(losses) for _ in foreign]
        found.append(Losses(
            name, [row.row for row in own], np.array([x.sum() for x in alone]),
            np.array([x.sum() for x in after]).reshape(len(own), others), np.array([float(len(x)) for x in alone]),
        ))  # fmt: skip
    return found


def _exchange(rows: list[Encoded], others: int, most_tokens: int) -> tuple[list[Encoded], list[Encoded]]:
    """Those of the rows that can be put behind `others` other questions, and their answers behind these."""
    if len(rows) < FEWEST:
        return [], []
    foreign = foreign_rows(rows, others, most_tokens)
    places = foreign.places[foreign.ranks == others - 1]
    return [rows[place] for place in places], foreign.pick(np.flatnonzero(np.isin(foreign.places, places))).rows


def sample(examples: Sequence[Example], most: int) -> list[Example]:
    """At most `most` of the examples, drawn by a fixed seed, in their order."""
    if len(examples) <= most:
        return list(examples)
    drawn = np.random.default_rng(SEED).choice(len(examples), most, replace=False)
    return [examples[place] for place in sorted(drawn.tolist())]


def _losses(yardstick: Yardstick, rows: Sequence[Encoded], others: int, say: Say) -> list[np.ndarray]:
    """The losses of the trained tokens of each row. What it costs is said first."""
    from alpaca.packed.scoring import open_base, seconds_per_token, token_losses

    device, name = pick_device(), yardstick.base.name
    choice = choose_precision(yardstick.base, "auto", device)
    say(f"fit: loading {name} in {choice.precision} ({choice.reason})")
    model = open_base(yardstick.base, choice.precision, device)
    total = sum(map(len, rows))
    about = duration(seconds_per_token(model, rows) * total)
    say(f"fit: {plural(len(rows) // (1 + others), 'answer')}, each after its own question and {others} others: "
        f"{total:,} tokens, about {about}; --fit_rows N takes fewer, 0 none")  # fmt: skip
    with progress("fit", total, "token", say) as done:
        losses = token_losses(model, rows, done)
    for row, found in zip(rows, losses, strict=True):
        if not np.isfinite(found).all():
            raise NonFiniteLoss(f"{name} gives row {row.row} no finite loss: leave the look out with --fit_rows 0")
    return losses
