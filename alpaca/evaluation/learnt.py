"""What training did to single rows: which were learnt by heart, and which were not learnt.

Let b be the loss per token of a row's answer by the base, and a that by the adapter. Of held-out rows, which training
never saw, a share a/b is left, m in the middle: what the adapter learnt of the set as a whole. So m·b is what a row
would come to that it never saw. What a row is below that, it owes to having been trained on itself. That is
counterfactual memorization (Zhang et al., "Counterfactual Memorization in Neural Language Models", 2021, arXiv
2112.12938), with the models that did not see the row replaced by rows that the model did not see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from alpaca.evaluation.losses import RowLosses, Scored, row_losses
from alpaca.evaluation.results import Learnt, LearntRow
from alpaca.progress import Say, progress
from alpaca.prompts.encode import Encoded
from alpaca.words import tagged

SURE = math.log(2)  # the loss of a token that has a probability of one half: above it, greedy decoding says the token
BY_HEART, FAR = math.log(5 / 3), 4.0  # below what it would be unseen: nats of the share, and spreads
HARD, HARDER = 3.0, 0.25  # above the middle held-out loss, in spreads, and as a share of it
HELPED = 2.0  # spreads from which on being trained on has helped a row
NORMAL = 1.4826  # the median of absolute deviations in units of a normal distribution's standard deviation
FEWEST_TOKENS = 8  # of an answer: the loss of a shorter one says little
FEWEST_HELD_OUT = 8
MOST, LEAST = 2_000, 32  # rows that are looked at
SHARE = 0.2  # of a report's time


@dataclass(frozen=True)
class Unseen:
    """How held-out rows came out: the logarithm of the share that is left of the base's loss, and the adapter's loss
    per token; the middle and the spread of each."""

    share: float
    share_spread: float
    loss: float
    loss_spread: float


def look(
    model: Scored,
    rows: Sequence[Encoded],
    of: int,
    held_out: tuple[RowLosses, RowLosses],
    seconds_per_token: float,
    seconds: float | None,
    say: Say,
) -> tuple[Learnt | None, list[str]]:
    """Look at the first of `rows`, which were trained on, `of` in all: as many as there is time for. `held_out`: what
    base and adapter lose on rows that were not. None, and the reason, where that can't be done. Raises NonFiniteLoss.
    """
    if not rows:
        return None, ["Not measured: the rows that were trained on are not at hand."]
    if len(_long(*held_out)) < FEWEST_HELD_OUT:
        return None, [f"Not measured: it takes {FEWEST_HELD_OUT} held-out rows whose answers have {FEWEST_TOKENS} "
                      "tokens or more."]  # fmt: skip
    some = affordable_rows(rows, seconds_per_token, seconds)
    if not some:
        return None, [
            "Not measured: the time was too short. With a larger --budget, the rows trained on are looked at."
        ]
    with progress(tagged("report", "rows trained on"), 2 * sum(map(len, some)), "token", say) as done:
        return find_learnt(model, some, of, held_out, done), []


def affordable_rows(rows: Sequence[Encoded], seconds_per_token: float, seconds: float | None) -> list[Encoded]:
    """The first of `rows` that can be looked at in `seconds`; none where these are too few to tell anything."""
    if seconds is None:
        return list(rows)
    tokens = np.cumsum([len(row) for row in rows])
    fitting = int(np.searchsorted(2 * tokens * seconds_per_token, seconds, side="right"))
    return list(rows[:fitting]) if fitting >= min(LEAST, len(rows)) else []


def find_learnt(
    model: Scored,
    rows: Sequence[Encoded],
    of: int,
    held_out: tuple[RowLosses, RowLosses],
    done: Callable[[int], object] = lambda tokens: None,
) -> Learnt:
    """As `look`, at all of `rows`. `done` is told of tokens."""
    before, after = (row_losses(model, rows, scale, done) for scale in (0.0, 1.0))
    return judge([row.row for row in rows], before, after, held_out, of)


def judge(
    numbers: Sequence[int], before: RowLosses, after: RowLosses, held_out: tuple[RowLosses, RowLosses], of: int
) -> Learnt:
    """What became of the rows of these numbers, from the losses of base and adapter."""
    unseen = unseen_of(*held_out)
    left = math.exp(unseen.share)
    heart, missed = (found(before, after, unseen) for found in (by_heart, not_learnt))
    rows = {
        place: LearntRow(
            numbers[place],
            float(before.tokens[place].mean()),
            float(after.tokens[place].mean()),
            float(before.tokens[place].mean() * left),
            float((after.tokens[place] < SURE).mean()),
        )
        for place in (*heart, *missed)
    }
    mistaken = by_heart(*held_out, unseen)
    return Learnt(
        len(numbers),
        of,
        left,
        sorted((rows[place] for place in heart), key=lambda row: (row.after / row.unseen, row.row)),
        sorted((rows[place] for place in missed), key=lambda row: (-row.after, row.row)),
        len(held_out[0].tokens),
        len(mistaken),
    )


def unseen_of(before: RowLosses, after: RowLosses) -> Unseen:
    """From the losses of base and adapter on held-out rows."""
    places = _long(before, after)
    share, loss = shares(before, after)[places], after.sums[places] / after.counts[places]
    return Unseen(*_middle_and_spread(share), *_middle_and_spread(loss))


def shares(before: RowLosses, after: RowLosses) -> np.ndarray:
    """The logarithm of the share of the base's loss that is left of each row, float64 (n,)."""
    tiny = np.finfo(np.float64).tiny
    return np.asarray(np.log(np.maximum(after.sums, tiny)) - np.log(np.maximum(before.sums, tiny)))


def by_heart(before: RowLosses, after: RowLosses, unseen: Unseen) -> list[int]:
    """The places of the rows of which much less is left than of rows that were never seen."""
    least = unseen.share - max(BY_HEART, FAR * unseen.share_spread)
    left = shares(before, after)
    return [place for place in _long(before, after) if left[place] <= least]


def not_learnt(before: RowLosses, after: RowLosses, unseen: Unseen) -> list[int]:
    """The places of the rows that are much harder than rows that were never seen, and no better off for having been
    trained on."""
    hard = unseen.loss + max(HARD * unseen.loss_spread, HARDER * unseen.loss)
    helped = unseen.share - HELPED * unseen.share_spread
    loss, left = after.sums / np.maximum(1, after.counts), shares(before, after)
    return [place for place in _long(before, after) if loss[place] >= hard and left[place] >= helped]


def _long(before: RowLosses, after: RowLosses) -> list[int]:
    """The places of rows with enough tokens, of which the base does not know all."""
    return np.flatnonzero((after.counts >= FEWEST_TOKENS) & (before.sums > 0)).tolist()


def _middle_and_spread(values: np.ndarray) -> tuple[float, float]:
    middle = float(np.median(values))
    return middle, float(np.median(np.abs(values - middle))) * NORMAL
