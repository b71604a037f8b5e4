"""What became of single rows: those planted to be learnt by heart, or not to be learnt, are found, and no others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from alpaca.base.load import load_model, load_tokenizer
from alpaca.evaluation.learnt import FEWEST_HELD_OUT, FEWEST_TOKENS, LEAST, affordable_rows, find_learnt, judge, look
from alpaca.evaluation.losses import AdaptedModel, RowLosses, row_losses
from alpaca.evaluation.results import Learnt
from alpaca.packed.attention import PACKED, register
from alpaca.packed.model import PackedModel
from alpaca.prompts.encode import Encoded, encode_examples
from alpaca.prompts.example import Example
from alpaca.prompts.find import load_template
from tests.evaluation.test_gain import fit

WORDS = ("hay", "grass", "herd", "fleece", "fibre", "suri", "cria", "paddock", "guard", "vet", "hoof", "wool")
HEART, NOISE = (1, 2), (11, 12)  # the numbers of planted rows


# --- by arithmetic --------------------------------------------------------------------------------------------------
def losses(means: Sequence[float], tokens: int = 40) -> RowLosses:
    """Rows of as many tokens, each with the mean loss that is given."""
    return RowLosses([np.full(tokens, mean) for mean in means])


def held_out(rows: int = 24, seed: int = 0) -> tuple[RowLosses, RowLosses]:
    """Of base losses around 4, about 85 % are left."""
    draw = np.random.default_rng(seed)
    before = draw.normal(4.0, 0.2, rows)
    return losses(before.tolist()), losses((before * draw.normal(0.85, 0.04, rows)).tolist())


@given(st.integers(0, 200))
def test_planted_rows_are_listed_and_ordinary_ones_are_not(seed: int) -> None:
    draw = np.random.default_rng([seed, 1])
    before = draw.normal(4.0, 0.2, 60)
    after = before * draw.normal(0.78, 0.04, 60)  # a little better than rows that were not seen
    after[:3] = before[:3] * [0.4, 0.3, 0.02]
    before[3:6], after[3:6] = [7.5, 6.4, 6.8], [6.5, 5.7, 5.9]
    before[6] = 7.5  # hard, and learnt all the same: neither
    after[6] = before[6] * 0.65
    found = judge(range(1, 61), losses(before.tolist()), losses(after.tolist()), held_out(seed=seed), 60)
    assert [row.row for row in found.by_heart] == [3, 2, 1]
    assert {row.row for row in found.not_learnt} == {4, 5, 6}
    assert found.mistaken == 0 and 0.8 < found.left < 0.9
    worst = found.by_heart[0]
    assert worst.after < worst.unseen / 10 and worst.said == 1.0


def test_short_answers_say_too_little_to_be_listed() -> None:
    short = FEWEST_TOKENS - 1
    found = judge([1, 2], losses([4.0, 7.5], short), losses([0.1, 7.5], short), held_out(), 2)
    assert found.by_heart == found.not_learnt == [] and found.rows == 2


@pytest.mark.parametrize(
    ("seconds", "looked_at"), [(None, 60), (60 * 10 * 2.0, 60), (40 * 10 * 2.0, 40), (LEAST * 19.0, 0), (-1.0, 0)]
)
def test_no_more_rows_are_looked_at_than_there_is_time_for_and_never_too_few(
    seconds: float | None, looked_at: int
) -> None:
    rows = [Encoded(list(range(10)), [(5, 10)], row) for row in range(60)]
    assert affordable_rows(rows, 1.0, seconds) == rows[:looked_at]
    assert affordable_rows(rows[:3], 1.0, 100.0) == rows[:3]  # all there are


# --- with a model ---------------------------------------------------------------------------------------------------
def examples(start: int, count: int, words: Sequence[str] = WORDS) -> list[Example]:
    """Questions whose answers are words drawn at random, so that nothing but the row itself tells the answer."""
    draw = np.random.default_rng(start)
    return [
        Example.single(f"note {number}", "", " ".join(draw.choice(words, 10)), row=number)
        for number in range(start, start + count)
    ]


@pytest.fixture(scope="module")
def trained(tiny_base: Path) -> tuple[AdaptedModel, list[Encoded], Learnt, Learnt]:
    """A model, its rows, and what became of them: after a training on all of them but two, of letters, which it is said
    to have seen; and after it went on with two rows alone."""
    tokenizer = load_tokenizer(tiny_base)
    template = load_template("auto", tokenizer)

    def encode(rows: list[Example]) -> list[Encoded]:
        return encode_examples(tokenizer, template, rows, cutoff_len=256).examples

    rows, letters = encode(examples(HEART[0], 10)), encode(examples(NOISE[0], 2, ("q", "x", "j", "zk", "vw", "#")))
    every, apart = [*rows, *letters], encode(examples(901, 12))
    register()
    torch.manual_seed(0)
    base = load_model(tiny_base, "fp32", torch.device("cpu"), PACKED)
    peft = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    model = AdaptedModel(peft.eval())
    found = []
    for taught, steps in ((rows, 12), (rows[: len(HEART)], 25)):
        fit(PackedModel(peft), taught, steps)
        unseen = row_losses(model, apart, 0.0), row_losses(model, apart, 1.0)
        found.append(find_learnt(model, every, 12, unseen))
    return model, every, found[0], found[1]


def test_rows_that_a_model_learnt_by_heart_and_rows_that_it_did_not_learn_are_found(
    trained: tuple[AdaptedModel, list[Encoded], Learnt, Learnt],
) -> None:
    _, _, first, then = trained
    assert {row.row for row in first.not_learnt} == set(NOISE)
    assert {row.row for row in then.by_heart} == set(HEART)
    assert all(row.said > 0.5 and row.after < row.unseen / 5 for row in then.by_heart)
    assert (then.rows, then.of, then.held_out, then.mistaken) == (12, 12, 12, 0)


@pytest.mark.parametrize(
    ("rows", "held", "says"),
    [
        (0, 24, "not at hand"),
        (60, FEWEST_HELD_OUT - 1, "it takes 8 held-out rows"),
        (60, 24, "the time was too short"),
    ],
)
def test_what_was_not_measured_is_said(
    trained: tuple[AdaptedModel, list[Encoded], Learnt, Learnt], rows: int, held: int, says: str
) -> None:
    model, encoded, *_ = trained
    found, notes = look(model, (encoded * 5)[:rows], 60, held_out(held), 1.0, 1.0, lambda line: None)
    assert found is None and says in notes[0]
