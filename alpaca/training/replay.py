"""Replay: general rows among the training rows, so that what the base could do is not forgotten.

An epoch holds every training row, and replay rows so that these are `replay_ratio` of all of its rows. Each epoch draws
its own, and no row comes again before all have been drawn. The draw follows from the seed alone, so the steps of a run
are still a flat list that is made once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from alpaca.data.general import SHIPPED
from alpaca.data.plain_text import in_sections
from alpaca.data.reader import read_examples
from alpaca.errors import DataError, NoRowsLeft
from alpaca.packed.batch import label_count
from alpaca.packed.packing import Step, plan_steps
from alpaca.prompts.encode import Encoded
from alpaca.prompts.example import Example
from alpaca.training.config import FinetuneConfig

STREAM = 0x5EED  # keeps the draw of replay rows apart from the order of the rows, which is drawn from the same seed
# Tokens of an answer that the base gives itself. One that is longer is left out: cut off, it would teach the model to
# stop in mid-sentence. Where the base teaches the rows, nothing is learned from where they end, and the beginning is
# enough, cut off or not.
ANSWER_TOKENS, TAUGHT_TOKENS = 200, 64


@dataclass(frozen=True)
class Answered:
    """What the base answered itself: how many prompts, and how many of its answers were of no use: cut off, or empty or
    with characters that no text holds."""

    asked: int
    cut_off: int
    empty: int
    sha256: str


@dataclass(frozen=True)
class Replay:
    """The replay of a run. `draws` are, for each epoch, the indices of the rows of `encoded` that it holds."""

    source: str
    sha256: str
    ratio: float
    rows: list[Example]
    encoded: list[Encoded]
    draws: list[list[int]]
    answered: Answered | None = None
    kl: tuple[float, str] = (0.0, "")  # the weight of the divergence from the base on these rows, and why it is that
    own: tuple[bool, str] = (False, "")  # whether the base answers them itself, and why

    @property
    def per_epoch(self) -> int:
        return len(self.draws[0])

    def share(self, train_rows: int) -> float:
        """The share of replay rows that came about, among all rows of an epoch."""
        return self.per_epoch / (train_rows + self.per_epoch)

    def line(self, train_rows: int) -> str:
        """What is mixed in, for people."""
        share = self.share(train_rows)
        short = f"; {self.ratio:.1%} was wanted, but there are no more" if share < 0.9 * self.ratio else ""
        left_out = len(self.rows) - len({encoded.row for encoded in self.encoded})
        fitting = f" ({left_out} more do not fit in cutoff_len or the template)" if left_out else ""
        return (
            f"{self.per_epoch} of {len(self.encoded)} general rows of {self.source}{fitting} in each epoch, drawn "
            f"anew: {share:.1%} of its rows{short}"
        )

    def card(self, train_rows: int) -> dict[str, Any]:
        """For the adapter's card."""
        card: dict[str, Any] = {
            "source": Path(self.source).name,
            "sha256": self.sha256,
            "ratio": self.ratio,
            "share": round(self.share(train_rows), 4),
            "rows": len(self.encoded),
            "rows_per_epoch": self.per_epoch,
            "rows_seen": len({index for drawn in self.draws for index in drawn}),
            "draw": "each epoch its own, by the seed; none again before all were drawn",
            "answers": "of the set",
            "kl": self.kl[0],
        }
        if self.answered is not None:
            card |= {"answers": "of the base itself", "asked": self.answered.asked}
            card |= {"cut_off": self.answered.cut_off, "empty": self.answered.empty}
        return card


def read_replay(config: FinetuneConfig, held_out: Container[str]) -> tuple[str, list[Example]]:
    """(source, the rows that may be drawn). Never rows that measure forgetting, nor copies of validation rows, whose
    keys are in `held_out`. Raises the reader's errors, and NoRowsLeft."""
    from alpaca.data.general import split_general

    path = Path(config.replay_path)
    if config.replay_path == FinetuneConfig.replay_path and not path.is_file():
        path = SHIPPED  # the project's own, wherever the command is run
    source = str(path) if path.is_file() else config.replay_path
    try:
        rows = read_examples(source, skip_bad_rows=config.skip_bad_rows).examples
    except DataError as error:
        raise type(error)(f"the rows for replay: {error.message}\nTo train without replay: --replay_ratio 0") from None
    rows = in_sections(rows)
    if path.is_file() and SHIPPED.is_file() and path.samefile(SHIPPED):
        rows, _ = split_general(rows)
    rows = [row for row in rows if row.key() not in held_out]
    if not rows:
        raise NoRowsLeft(
            f"{source}: no row is left for replay once those that measure are taken out. Give another --replay_path, "
            "or train without: --replay_ratio 0"
        )
    return source, rows


def rows_hash(rows: Sequence[Example]) -> str:
    """A hash of the rows' content, order included."""
    return hashlib.sha256("".join(row.key() for row in rows).encode("ascii")).hexdigest()


def plan_replay(
    source: str, rows: list[Example], encoded: list[Encoded], *, ratio: float, train_rows: int, config: FinetuneConfig
) -> Replay:
    """Draw the rows of every epoch: `ratio` of all of its rows, at least one and no row twice.

    Raises NoRowsLeft where none of them fits in the cutoff.
    """
    if not encoded:
        raise NoRowsLeft(
            f"{source}: none of the {len(rows)} rows for replay fits in cutoff_len. Raise --cutoff_len, or train "
            "without replay: --replay_ratio 0"
        )
    wanted = max(1, round(train_rows * ratio / (1 - ratio)))
    epochs = ceil(config.num_epochs - 1e-9)
    draws = draw(len(encoded), min(wanted, len(encoded)), epochs, config.seed)
    return Replay(source, rows_hash(rows), ratio, rows, encoded, draws)


def draw(rows: int, count: int, epochs: int, seed: int) -> list[list[int]]:
    """For each epoch `count` of `rows` indices, from a deck that is shuffled anew when it runs out."""
    generator = np.random.default_rng([seed, STREAM])
    deck: list[int] = []
    drawn: list[list[int]] = []
    for _ in range(epochs):
        if len(deck) < count:
            left, shuffled = set(deck), generator.permutation(rows).tolist()
            deck += sorted(shuffled, key=left.__contains__)  # what this epoch already has goes to the bottom
        drawn.append(deck[:count])
        deck = deck[count:]
    return drawn


def mixed_steps(
    train: Sequence[Encoded],
    replay: Replay,
    *,
    batch_size: int,
    budget: int,
    num_epochs: float,
    seed: int,
    most: int | None,
    processes: int,
) -> list[Step]:
    """All steps of a run with replay, as `plan_steps` makes them; indices count on from the training rows
    into `replay.encoded`. Each epoch is planned by itself, because each has rows of its own."""
    everything = [*train, *replay.encoded]
    steps: list[Step] = []
    for epoch, drawn in enumerate(replay.draws):
        rows = [*range(len(train)), *(len(train) + index for index in drawn)]
        steps += [
            _renumbered(step, rows)
            for step in plan_steps(
                [len(everything[row]) for row in rows], [label_count(everything[row]) for row in rows],
                batch_size=batch_size, budget=budget, num_epochs=min(1.0, num_epochs - epoch),
                seed=seed + (epoch << 32), most=most, processes=processes,
            )
        ]  # fmt: skip
    return steps


def _renumbered(step: Step, rows: Sequence[int]) -> Step:
    packs = tuple(tuple(tuple(rows[index] for index in pack) for pack in rank) for rank in step.packs)
    return Step(packs, step.labels, step.tokens)
