"""Rows whose answer does not fit their question, by what the base alone makes of them.

The base reads each answer after its own question and after the questions of two other rows. The matter of a row is the
loss of its answer after those less the loss after its own, in nats: how much its own question tells about it. Of an
answer that slipped to another row it is about what the choice of one foreign question or another makes by chance, and
those two say how much that is (`Matter.chance`). Which rows are listed follows from both, see `Matter.misfits`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from alpaca.base.precision import choose_precision
from alpaca.data.languages import UNCLEAR, languages_of
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
MOST_ROWS = 500  # that are looked at if nothing else is said
FEWEST = 20  # rows; with fewer nothing is known of what is usual
PRECISE = 0.75  # of what is listed, the share that should be misfits
TAIL = 0.25  # the part of chance's scores, the lowest, that tells how many misfits there are
BLIND = 1 / 3  # share of rows whose question tells nothing, from which on the base is no judge
SEED = 0


@dataclass(frozen=True)
class Matter:
    """What the questions of `rows` (numbers of the source) tell about their answers, by `base`.

    `nats`: by how much the answer is likelier after its own question, summed over its `tokens`, float64 (n,). `chance`:
    scores of answers after questions of which none is their own, float64 (m,). `of`: rows that there are in all.
    """

    base: str
    of: int
    rows: list[int] = field(default_factory=list)
    nats: np.ndarray = field(default_factory=lambda: np.empty(0))
    tokens: np.ndarray = field(default_factory=lambda: np.empty(0))
    chance: np.ndarray = field(default_factory=lambda: np.empty(0))

    @property
    def scores(self) -> np.ndarray:
        """Nats over the root of the tokens, float64 (n,): chance makes as much of it in short answers as in long."""
        return self.nats / np.sqrt(self.tokens)

    @property
    def per_token(self) -> np.ndarray:
        """Nats per token of the answer, float64 (n,)."""
        return self.nats / self.tokens

    @property
    def too_few(self) -> bool:
        return len(self.rows) < FEWEST

    @property
    def blind(self) -> bool:
        """Whether the base tells too little of these rows to judge any of them."""
        return float((self.scores <= 0).mean()) > BLIND

    def as_json(self) -> dict[str, Any]:
        """What each row's question tells, in nats per token of the answer, for a program to read."""
        told = zip(self.rows, self.per_token.tolist(), strict=True) if len(self.nats) else ()
        return {
            "base": self.base, "of": self.of, "blind": bool(len(self.nats)) and self.blind,
            "rows": [{"row": row, "matter": round(nats, 4)} for row, nats in told],
        }  # fmt: skip

    def misfits(self) -> list[int]:
        """Places in `rows` of those that are listed, in order.

        Two groups, after Efron, "Large-Scale Inference", 2010, ch. 5: a share p of the rows are misfits, whose scores
        are distributed as chance's, F. Hardly any other row scores as low as the lowest quarter of chance, which gives
        p. Of the m lowest rows, up to score t, about n·p·F(t) are misfits then, and the longest such list is taken of
        which they make three quarters.
        """
        if self.too_few or self.blind:
            return []
        scores, chance = self.scores, np.sort(self.chance)
        share = float((scores <= np.quantile(chance, TAIL)).mean()) / TAIL
        order = np.argsort(scores, kind="stable")
        below = np.searchsorted(chance, scores[order], side="right") / len(chance)
        right = len(scores) * min(1.0, share) * below / np.arange(1, len(scores) + 1)
        most = np.flatnonzero(right >= PRECISE)
        return sorted(order[: most[-1] + 1].tolist()) if len(most) else []


def matter_of(
    base: str, of: int, rows: Sequence[int], own: np.ndarray, foreign: np.ndarray, tokens: np.ndarray
) -> Matter:
    """Matter from summed losses: `own` (n,) after their own questions, `foreign` (n, k) after k ≥ 2 others."""
    others = foreign.shape[1]
    # One foreign question in the place of the own one against another; the own one stands against the mean of k, which
    # varies less.
    apart = (foreign[:, 0] - foreign[:, 1]) / np.sqrt(tokens) * np.sqrt((1 + 1 / others) / 2)
    return Matter(base, of, list(rows), foreign.mean(axis=1) - own, tokens, np.concatenate([apart, -apart]))


def measure_matter(examples: Sequence[Example], yardstick: Yardstick, most: int, say: Say) -> Matter:
    """Ask the base about at most `most` rows, drawn by a fixed seed. Raises the errors of loading it, NonFiniteLoss."""
    rows, own, foreign, tokens = ask_base(sample(examples, most), yardstick, OTHERS, say)
    if len(rows) < FEWEST:
        return Matter(yardstick.base.name, len(examples), rows)
    return matter_of(yardstick.base.name, len(examples), rows, own, foreign, tokens)


Losses = tuple[list[int], np.ndarray, np.ndarray, np.ndarray]


def ask_base(examples: Sequence[Example], yardstick: Yardstick, others: int, say: Say) -> Losses:
    """The numbers of the rows that have a question and `others` more of the same language, or of any, to exchange it
    for; the summed losses of their answers after the own (n,) and after the others (n, others); their tokens (n,).

    Of a conversation it is the last answer. Fewer than FEWEST rows are not worth loading the base: no losses then.
    """
    encoded = {row.row: own_answer(row) for row in yardstick.encode(examples).examples if has_question(row)}
    rows = list(encoded.values())
    language = {row: name for name, numbers in languages_of(examples).items() for row in numbers}
    foreign = foreign_rows(rows, others, yardstick.cutoff_len, groups=[language.get(row, UNCLEAR) for row in encoded])
    places = foreign.places[foreign.ranks == others - 1]
    numbers = [rows[place].row for place in places]
    if len(places) < FEWEST:
        return numbers, np.empty(0), np.empty((0, others)), np.empty(0)
    own = [rows[place] for place in places]
    exchanged = [foreign.rows[index] for index in np.flatnonzero(np.isin(foreign.places, places))]
    losses = _losses(yardstick, [*own, *exchanged], len(own), say)
    sums = np.array([found.sum() for found in losses])
    if not np.isfinite(sums).all():
        row = [*own, *exchanged][int(np.flatnonzero(~np.isfinite(sums))[0])].row
        raise NonFiniteLoss(
            f"{yardstick.base.name} gives row {row} no finite loss: leave the look out with --fit_rows 0"
        )
    tokens = np.array([len(found) for found in losses[: len(own)]], dtype=np.float64)
    return numbers, sums[: len(own)], sums[len(own) :].reshape(len(own), others), tokens


def sample(examples: Sequence[Example], most: int) -> list[Example]:
    """At most `most` of the examples, drawn by a fixed seed, in their order."""
    if len(examples) <= most:
        return list(examples)
    drawn = np.random.default_rng(SEED).choice(len(examples), most, replace=False)
    return [examples[place] for place in sorted(drawn.tolist())]


def _losses(yardstick: Yardstick, rows: Sequence[Encoded], answers: int, say: Say) -> list[np.ndarray]:
    """The losses of the trained tokens of each row. What it costs is said first."""
    from alpaca.packed.scoring import open_base, seconds_per_token, token_losses

    device = pick_device()
    choice = choose_precision(yardstick.base, "auto", device)
    say(f"fit: loading {yardstick.base.name} in {choice.precision} ({choice.reason})")
    model = open_base(yardstick.base, choice.precision, device)
    total = sum(map(len, rows))
    about = duration(seconds_per_token(model, rows) * total)
    say(f"fit: {plural(answers, 'answer')}, each after its own question and {len(rows) // answers - 1} others: "
        f"{total:,} tokens, about {about}; --fit_rows N takes fewer, 0 none")  # fmt: skip
    with progress("fit", total, "token", say) as done:
        return token_losses(model, rows, done)
