"""Near copies of some rows among many: none is missed, none is made up, and none is trained on."""

from __future__ import annotations

import random

import pytest

from alpaca.data.duplicates import alike, question_and_answer
from alpaca.data.near_copies import NearCopies
from alpaca.data.reader import read_examples
from alpaca.data.split import EXACT, split
from alpaca.paths import DATA
from alpaca.prompts.example import Example


def changed(row: Example, words: int, draw: random.Random) -> Example:
    """The row with some words of its question and of its answer replaced; of texts without spaces, characters."""
    texts = []
    for text in ("\n".join(row.turns[-1].given), "\n".join(row.turns[-1].written)):
        parts = text.split(" ") if text.count(" ") > 5 else list(text)
        for _ in range(words):
            parts[draw.randrange(len(parts))] = "hay"
        texts.append((" " if text.count(" ") > 5 else "").join(parts))
    return Example.single(texts[0], output=texts[1], row=row.row)


@pytest.mark.parametrize("name", ["alpacas.jsonl", "insurance_zh.jsonl"])
def test_exactly_those_rows_are_found_that_a_comparison_of_all_pairs_finds(name: str) -> None:
    rows, draw = read_examples(str(DATA / name)).examples, random.Random(3)
    held_out = rows[:30]
    asked = rows[25:60] + [changed(row, words, draw) for row in held_out for words in range(5)]
    found = [NearCopies(held_out).has(row) for row in asked]
    every = [any(alike(question_and_answer(row), question_and_answer(other)) for other in held_out) for row in asked]
    assert found == every
    assert 30 < sum(found) < len(asked) - 40


@pytest.mark.parametrize(
    ("question", "answer", "near"),
    [
        ("When was the mill opened, and by whom?", "Titus Salt opened it in 1853, on the river Aire.", True),
        ("When was the mill opened, and by whom?", "TITUS SALT opened it in 1853 on the river Aire!", True),
        ("When was the mill opened, and by whom?", "Charles Ledger shipped his flock to Australia.", False),
        ("Where do most of the herds live today?", "Titus Salt opened it in 1853, on the river Aire.", False),
        ("", "", False),
    ],
)
def test_both_question_and_answer_must_be_alike(question: str, answer: str, near: bool) -> None:
    held = Example.single("When was the mill opened, and by whom?",
                          output="Titus Salt opened it in 1853, on the river Aire.")  # fmt: skip
    assert NearCopies([held]).has(Example.single(question, output=answer)) == near
    assert not NearCopies([]).has(held)


def with_copies(copied: int) -> list[Example]:
    """Sixty rows of which the first `copied` come again with another end: near copies, on whichever side they fall."""
    rows = read_examples(str(DATA / "alpacas.jsonl")).examples[:60]
    again = [Example.single(row.turns[0].instruction, output=f"{row.turns[0].output} Indeed.", row=100 + row.row)
             for row in rows[:copied]]  # fmt: skip
    return rows + again


def test_near_copies_of_held_out_rows_are_not_trained_on_and_are_counted() -> None:
    rows = with_copies(12)
    apart, before = split(rows, 20, seed=1), split(rows, 20, seed=1, rule=EXACT)
    assert apart.validation == before.validation
    assert apart.near_copies == len(before.train) - len(apart.train) > 0
    assert not any(NearCopies(apart.validation).has(row) for row in apart.train)
    assert f"left out as near copies of held-out rows: {apart.near_copies}" in apart.note
    assert (before.copies, before.near_copies) == (0, 0) and "near copies" not in before.note


def test_rows_that_mostly_copy_each_other_are_trained_on_and_said_to_flatter() -> None:
    rows = with_copies(60)
    made = split(rows, 60, seed=1)
    assert len(made.train) == 60 and made.near_copies == 0 and made.near_trained > 15
    assert f"{made.near_trained} nearly copy held-out ones" in made.note and "too good" in made.note
