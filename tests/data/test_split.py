"""Validation rows: a count, a fraction, clamped, by seed, and never also trained on."""

from __future__ import annotations

import pytest

from alpaca.data.split import split
from alpaca.errors import NoRowsLeft
from alpaca.prompts.example import Example


def examples(count: int) -> list[Example]:
    return [Example.single(f"question {n}", output=f"answer {n}", row=n) for n in range(1, count + 1)]


@pytest.mark.parametrize(
    ("rows", "size", "held", "said"),
    [
        (100, None, 10, "a tenth"),
        (10_000, None, 500, "a tenth, at most 500"),
        (3, None, 0, "a tenth"),
        (100, 0, 0, "val_set_size 0"),
        (100, 7, 7, "val_set_size 7"),
        (100, 0.2, 20, "val_set_size 0.2"),
        (100, 1, 1, "val_set_size 1"),
        (100, 1.0, 1, "val_set_size 1"),
        (100, 2000, 50, "val_set_size 2000, but that is over half of 100 rows, so 50"),
        (100, 0.9, 50, "val_set_size 0.9, but that is over half of 100 rows, so 50"),
        (1, 2000, 0, "over half of 1 rows, so 0"),
    ],
)
def test_size_is_a_count_or_a_fraction_and_clamped_aloud(rows: int, size: float | None, held: int, said: str) -> None:
    made = split(examples(rows), size, seed=1)
    assert (len(made.train), len(made.validation)) == (rows - held, held)
    assert said in made.note
    assert f"{rows - held} rows to train on, {held} held out" in made.note


def test_every_row_is_on_one_side_and_in_its_order() -> None:
    made = split(examples(50), 10, seed=3)
    assert sorted(made.train + made.validation, key=lambda e: e.row) == examples(50)
    for part in (made.train, made.validation):
        assert [e.row for e in part] == sorted(e.row for e in part)


def test_the_seed_decides() -> None:
    def held(seed: int) -> list[int]:
        return [example.row for example in split(examples(50), 10, seed).validation]

    assert held(1) == held(1) != held(2)


def test_copies_of_a_held_out_row_are_not_trained_on() -> None:
    rows = [*examples(10), *examples(10), *examples(10)]
    made = split(rows, 3, seed=0)
    held = {example.key() for example in made.validation}
    assert not held & {example.key() for example in made.train}
    assert "left out as copies of held-out rows: " in made.note


def test_rows_that_are_all_copies_are_all_trained_on() -> None:
    rows = [Example.single("same", output="same", row=n) for n in range(1, 9)]
    made = split(rows, 2, seed=0)
    assert (len(made.train), made.validation) == (8, [])
    assert "all rows are copies" in made.note


def test_no_rows_are_refused() -> None:
    with pytest.raises(NoRowsLeft, match=r"^E2003 NoRowsLeft: no rows are left to train on"):
        split([], None, seed=0)
