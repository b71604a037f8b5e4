"""Manner and matter: the arithmetic, what is left out and why, and adapters that learned only one of the two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from alpaca.base.load import load_model, load_tokenizer
from alpaca.evaluation.budget import SWEPT, SWEPT_OTHERS
from alpaca.evaluation.gain import Answers, answers_of, gain_parts, notes_on
from alpaca.evaluation.losses import AdaptedModel, RowLosses
from alpaca.evaluation.results import GainParts
from alpaca.evaluation.scales import Rows, measure_at, sweep_of
from alpaca.packed.attention import PACKED, register
from alpaca.packed.batch import collate, label_count
from alpaca.packed.model import PackedModel
from alpaca.packed.packing import fill_packs
from alpaca.prompts.encode import Encoded, encode_examples
from alpaca.prompts.example import Example
from alpaca.prompts.find import load_template
from alpaca.prompts.foreign import foreign_rows

TOPICS = {
    "hay": "grass in the field with grass",
    "herd": "with the alpaca in the field",
    "field": "eats hay and the hay",
    "grass": "the herd and the herd",
}


def encoded(*shape: tuple[int, int], row: int = 1) -> Encoded:
    """A row of answers at the places given, up to the end of the last one."""
    return Encoded([row * 100 + n for n in range(shape[-1][1])], list(shape), row)


ROWS = [encoded((3, 5 + n), row=n) for n in range(1, 7)]


# --- the arithmetic -------------------------------------------------------------------------------------------------
def answers(own: Sequence[float], foreign: Sequence[Sequence[float]], tokens: Sequence[float]) -> Answers:
    losses = np.array(foreign)
    return Answers(np.array(own), losses.mean(axis=1), losses.min(axis=1), np.array(tokens))


def parts(before: Answers, after: Answers) -> GainParts:
    return gain_parts(before, after, foreign_rows(ROWS, 2, 100))


BEFORE = answers([30, 20, 10], [[32, 36], [19, 25], [14, 16]], [10, 10, 5])


def test_manner_and_matter_add_up_to_the_gain() -> None:
    found = parts(BEFORE, answers([18, 11, 6], [[24, 28], [17, 17], [12, 12]], [10, 10, 5]))
    assert found.manner.value == pytest.approx((34 + 22 + 15 - 26 - 17 - 12) / 25)
    assert found.manner.value + found.matter.value == pytest.approx((60 - 35) / 25)
    assert found.foreign_before - found.foreign_after == pytest.approx(found.manner.value)
    assert (found.told_before, found.told_after) == (pytest.approx(2 / 3), 1.0)
    assert found.manner.low <= found.manner.value <= found.manner.high and found.others == 2


def test_what_is_gained_after_every_question_is_manner_alone() -> None:
    found = parts(BEFORE, answers([25, 15, 7.5], [[27, 31], [14, 20], [11.5, 13.5]], [10, 10, 5]))
    assert found.manner.value == pytest.approx(0.5)
    assert [found.matter.value, found.matter.low, found.matter.high] == pytest.approx([0, 0, 0])


def test_what_is_gained_after_its_own_question_alone_is_matter() -> None:
    found = parts(BEFORE, answers([25, 15, 7.5], [[32, 36], [19, 25], [14, 16]], [10, 10, 5]))
    assert (found.manner.value, found.matter.value) == (0, pytest.approx(0.5))


def test_only_last_answers_and_rows_with_other_questions_count() -> None:
    rows = [encoded((2, 3), (5, 7), row=1), encoded((1, 4), row=2), encoded((3, 6), row=3)]
    foreign = foreign_rows(rows, 4, 100)
    assert foreign.answers.tolist() == [0, 2]
    own = RowLosses([np.array([9.0, 1, 2]), np.array([5.0, 5, 5]), np.array([1.0, 1, 1])])
    found = answers_of(own.last_answers(rows), RowLosses([np.array([4.0, 4]), np.array([2.0, 2, 1])]), foreign)
    assert found.own.tolist() == [3, 3] and found.foreign.tolist() == [8, 5] and found.counts.tolist() == [2, 3]


# --- what is said ---------------------------------------------------------------------------------------------------
RAW = Encoded([1, 2, 3], [(1, 3)], 9)
TWINS = [Encoded([5, 6, 7 + n], [(2, 3)], n) for n in range(3)]


@pytest.mark.parametrize(
    ("rows", "others", "says"),
    [
        ([], 4, "there are no held-out rows"),
        (ROWS[:1], 4, "there is only one held-out row"),
        ([RAW, RAW], 4, "the held-out rows have no questions"),
        (TWINS, 4, "no held-out row has another question beside it"),
        ([*ROWS, RAW], 4, "1 held-out row without a question"),
        ([encoded((2, 3), (5, 7), row=9), *ROWS], 4, "Of conversations, the last answer"),
        (ROWS, 1, "after 1 other question, not 4"),
    ],
)
def test_what_is_left_out_is_said_with_its_reason(rows: list[Encoded], others: int, says: str) -> None:
    (note,) = notes_on(rows, foreign_rows(rows, others, 100), others, 4)
    assert says in note


def test_nothing_is_said_where_nothing_is_left_out() -> None:
    assert notes_on(ROWS[:2], foreign_rows(ROWS[:2], 4, 100), 4, 4) == []


# --- adapters that learned one thing alone --------------------------------------------------------------------------
def examples(start: int, count: int, truthful: bool = True) -> list[Example]:
    """Rows of one answer for each topic; `truthful` ones have that of their own topic, others that of any."""
    draw = np.random.default_rng(3)
    topics = list(TOPICS)
    asked = [topics[n % len(topics)] for n in range(count)]
    told = asked if truthful else [topics[n] for n in draw.integers(0, len(topics), count)]
    rows = enumerate(zip(asked, told, strict=True), start)
    return [Example.single(f"the {topic} {n * 37 % 1000}", "", TOPICS[answer], row=n) for n, (topic, answer) in rows]


@pytest.fixture(scope="module", params=[True, False], ids=["truthful", "shuffled"])
def learned(request: pytest.FixtureRequest, tiny_base: Path) -> tuple[bool, AdaptedModel, Rows]:
    """A tiny base with an adapter of rows that are right, or that have each other's answers; rows to measure it on."""
    tokenizer = load_tokenizer(tiny_base)
    template = load_template("auto", tokenizer)

    def encode(rows: list[Example]) -> list[Encoded]:
        return encode_examples(tokenizer, template, rows, cutoff_len=128).examples

    register()
    torch.manual_seed(0)
    base = load_model(tiny_base, "fp32", torch.device("cpu"), PACKED)
    peft = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    fit(PackedModel(peft), encode(examples(1, 48, request.param)), 60)
    peft.eval()
    held_out = encode(examples(901, 16))
    return request.param, AdaptedModel(peft), Rows(held_out, foreign_rows(held_out, 4, 128), held_out[:4])


def fit(model: PackedModel, rows: list[Encoded], steps: int) -> None:
    """Train what can be trained, all rows in every step."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    packs = [collate(pack, rows) for pack in fill_packs(range(len(rows)), [len(row) for row in rows], 4096)]
    labels = sum(map(label_count, rows))
    for _ in range(steps):
        optimizer.zero_grad()
        for pack in packs:
            (model(**pack.inputs(torch.device("cpu"))) / labels).backward()
        optimizer.step()


def test_right_rows_teach_manner_and_matter_and_shuffled_ones_manner_alone(
    learned: tuple[bool, AdaptedModel, Rows],
) -> None:
    truthful, model, rows = learned
    points = {scale: measure_at(model, rows, scale, lambda tokens: None) for scale in (0.0, 0.5, 1.0)}
    before, after = points[0.0].answers, points[1.0].answers
    assert before is not None and after is not None
    found = gain_parts(before, after, rows.foreign)
    assert found.manner.low > 1
    assert (found.matter.low > 0.3) == truthful
    assert found.told_after > 0.9 if truthful else found.told_after < 0.6
    sweep = sweep_of(points).points
    assert [point.manner for point in sweep[:1]] == [0.0] and sweep[0].matter == 0.0
    last = sweep[-1]
    assert last.manner is not None and last.matter is not None and sweep[0].domain and last.domain
    assert last.manner + last.matter == pytest.approx(sweep[0].domain - last.domain)
    assert (last.matter > 0.3) == truthful


def test_scales_between_have_fewer_rows_and_questions() -> None:
    many = [encoded((3, 5), row=n) for n in range(1, SWEPT + 20)]
    rows = Rows(many, foreign_rows(many, 4, 100), many)
    fewer = rows.at(0.5)
    assert len(fewer.domain) == len(fewer.general) == SWEPT
    assert len(fewer.foreign.rows) == SWEPT * SWEPT_OTHERS and rows.at(1.0) is rows
    assert rows.tokens == 5 * sum(map(len, many)) + sum(map(len, many))
