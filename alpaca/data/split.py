"""Hold rows out for validation, and say what was done."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from alpaca.errors import NoRowsLeft
from alpaca.prompts.example import Example

AUTO_FRACTION, AUTO_MOST = 0.1, 500


@dataclass(frozen=True, slots=True)
class Split:
    """Training and validation examples, and the sentence that says how they came about."""

    train: list[Example]
    validation: list[Example]
    note: str


def split(examples: Sequence[Example], val_set_size: float | None, seed: int) -> Split:
    """Draw the validation rows by `seed`: a count, a fraction below 1, or None for a tenth and at most 500.

    Clamped so that at least half of the rows are trained on. Copies of a held-out row are held out with it, so that
    validation never sees what was trained. Raises NoRowsLeft where there is nothing to train on.
    """
    if not examples:
        raise NoRowsLeft("no rows are left to train on")
    wanted, how = _wanted(len(examples), val_set_size)
    most = len(examples) // 2
    if wanted > most:
        how = f"{how}, but that is over half of {len(examples)} rows, so {most}"
        wanted = most
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)
    keys = [example.key() for example in examples]
    held = {keys[index] for index in order[:wanted]}
    train = [example for example, key in zip(examples, keys, strict=True) if key not in held]
    validation = [examples[index] for index in sorted(order[:wanted])]
    if not train:  # every row is a copy of a held-out one
        return Split(list(examples), [], "no validation: all rows are copies of each other")
    copies = len(examples) - len(train) - len(validation)
    note = f"{len(train)} rows to train on, {len(validation)} held out ({how})"
    return Split(train, validation, note + (f"; left out as copies of held-out rows: {copies}" if copies else ""))


def _wanted(rows: int, val_set_size: float | None) -> tuple[int, str]:
    if val_set_size is None:
        share = round(rows * AUTO_FRACTION)
        return min(AUTO_MOST, share), "a tenth" if share <= AUTO_MOST else f"a tenth, at most {AUTO_MOST}"
    if val_set_size < 1:
        return round(rows * val_set_size), f"val_set_size {val_set_size:g}"
    return int(val_set_size), f"val_set_size {int(val_set_size)}"
