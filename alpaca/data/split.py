"""Hold rows out for validation, and say what was done."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from alpaca.data.plain_text import in_sections
from alpaca.errors import NoRowsLeft
from alpaca.prompts.example import Example

AUTO_FRACTION, AUTO_MOST = 0.1, 500
EXACT, NEAR = "exact copies apart", "near copies apart"
"""What is kept from being on both sides. Cards and checkpoints of versions until November 2026 name no rule: EXACT."""
MOST_NEAR = 0.25  # share of the rows to train on that may be left out as near copies: where more are, the rows are such


@dataclass(frozen=True, slots=True)
class Split:
    """Training and validation examples, the sentence that says how they came about, and the rule that was followed.

    `copies`, `near_copies`: rows that are neither, because a held-out row says the same; `near_trained`: near copies
    that are trained on all the same, because they are too many to do without.
    """

    train: list[Example]
    validation: list[Example]
    note: str
    rule: str = NEAR
    copies: int = 0
    near_copies: int = 0
    near_trained: int = 0


def split(examples: Sequence[Example], val_set_size: float | None, seed: int, rule: str = NEAR) -> Split:
    """Draw the validation rows by `seed`: a count, a fraction below 1, or None for a tenth and at most 500.

    Clamped so that at least half of the rows are trained on. Copies of a held-out row are left out, and by the rule
    NEAR its near copies (those of alpaca.data), so that validation never sees what was trained. Which rows are held
    out does not depend on the rule. Of a plain text, sections count as rows (alpaca.data.plain_text). Raises NoRowsLeft
    where there is nothing to train on.
    """
    if not examples:
        raise NoRowsLeft("no rows are left to train on")
    kind = "sections" if examples[0].place else "rows"
    examples = in_sections(examples)
    wanted, how = _wanted(len(examples), val_set_size)
    most = len(examples) // 2
    if wanted > most:
        how = f"{how}, but that is over half of {len(examples)} {kind}, so {most}"
        wanted = most
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)
    keys = [example.key() for example in examples]
    held = {keys[index] for index in order[:wanted]}
    train = [example for example, key in zip(examples, keys, strict=True) if key not in held]
    validation = [examples[index] for index in sorted(order[:wanted])]
    if not train:  # every row is a copy of a held-out one
        return Split(list(examples), [], "no validation: all rows are copies of each other", rule)
    copies = len(examples) - len(train) - len(validation)
    apart = _without_near_copies(train, validation) if rule == NEAR and validation else train
    near = len(train) - len(apart)
    too_many = near > MOST_NEAR * len(train)
    kept = train if too_many else apart
    note = f"{len(kept)} {kind} to train on, {len(validation)} held out ({how}){_about_copies(copies, near, too_many)}"
    return Split(kept, validation, note, rule, copies, 0 if too_many else near, near if too_many else 0)


def _without_near_copies(train: Sequence[Example], validation: Sequence[Example]) -> list[Example]:
    from alpaca.data.near_copies import NearCopies

    held_out = NearCopies(validation)
    return [example for example in train if not held_out.has(example)]


def _about_copies(copies: int, near: int, too_many: bool) -> str:
    said = f"; left out as copies of held-out rows: {copies}" if copies else ""
    if near and too_many:
        said += (
            f"; of those to train on, {near} nearly copy held-out ones: too many to leave out, but the held-out loss "
        )
        said += "will look too good"
    elif near:
        said += f"; left out as near copies of held-out rows: {near}"
    return said


def _wanted(rows: int, val_set_size: float | None) -> tuple[int, str]:
    if val_set_size is None:
        share = round(rows * AUTO_FRACTION)
        return min(AUTO_MOST, share), "a tenth" if share <= AUTO_MOST else f"a tenth, at most {AUTO_MOST}"
    if val_set_size < 1:
        return round(rows * val_set_size), f"val_set_size {val_set_size:g}"
    return int(val_set_size), f"val_set_size {int(val_set_size)}"
