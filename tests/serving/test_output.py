"""Several answers are handed on whole and in order, however they end; one comes piece by piece."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpaca.serving.output import BETWEEN_ANSWERS, Output
from alpaca.serving.stream import Chunk, FinishReason, Usage


def usage(**changes: Any) -> Usage:
    figures: dict[str, Any] = {
        "input_tokens": 7, "output_tokens": 3, "reused_tokens": 0, "queued": 0.1, "first_token": 0.5, "total": 2.0,
        "batch_size": 1.5, "seed": 11,
    }  # fmt: skip
    return Usage(**{**figures, **changes})


def last(index: int, text: str = "", reason: FinishReason = FinishReason.STOP, **changes: Any) -> Chunk:
    return Chunk(text, index, reason, usage(**changes))


def test_one_answer_comes_as_it_is_made() -> None:
    output = Output([Chunk("a"), Chunk(""), Chunk("b"), last(0, "c")], 1)
    assert list(output.pieces()) == ["a", "b", "c"]


def test_answers_that_end_out_of_order_are_handed_on_in_order() -> None:
    chunks = [Chunk("1", 1), Chunk("0", 0), last(2, "2"), Chunk("1", 1), last(1, "!"), Chunk("0", 0), last(0)]
    assert list(Output(chunks, 3).pieces()) == ["00", BETWEEN_ANSWERS + "11!", BETWEEN_ANSWERS + "2"]


def test_an_answer_is_handed_on_as_soon_as_those_before_it_are() -> None:
    chunks = iter([Chunk("b", 1), last(0, "a"), last(1)])
    pieces = Output(chunks, 2).pieces()
    assert next(pieces) == "a"
    assert next(chunks).index == 1


def test_an_empty_answer_has_its_place() -> None:
    assert list(Output([last(1, "b"), last(0)], 2).pieces()) == ["", BETWEEN_ANSWERS + "b"]


@given(data=st.data(), n=st.integers(2, 5))
def test_whatever_the_order_each_answer_comes_once_and_whole(data: st.DataObject, n: int) -> None:
    left = {index: [*data.draw(st.lists(st.text("ab", max_size=2), max_size=4)), None] for index in range(n)}
    whole = {index: "".join(part for part in parts if part) for index, parts in left.items()}
    chunks = []
    while left:
        index = data.draw(st.sampled_from(sorted(left)))
        part = left[index].pop(0)
        chunks.append(last(index) if part is None else Chunk(part, index))
        if part is None:
            del left[index]
    expected = [(BETWEEN_ANSWERS if index else "") + whole[index] for index in range(n)]
    assert list(Output(chunks, n).pieces()) == expected


def test_figures_are_those_of_all_answers() -> None:
    chunks = [
        last(
            1, reason=FinishReason.LENGTH, output_tokens=5, reused_tokens=6, first_token=0.8, total=4.0, batch_size=2.5
        ),
        last(0),
    ]
    output = Output(chunks, 2)
    assert output.metrics() == {}
    list(output.pieces())
    assert output.metrics() == {
        "input_token_count": 7, "output_token_count": 8, "queue_time": 0.1,
        "time_to_first_token": 0.5, "tokens_per_second": 2.0, "batch_size": 2.5, "finish_reason": "stop,length",
        "seed": 11,
    }  # fmt: skip
    assert "finish_reason stop,length" in output.summary()


def test_figures_of_an_answer_without_a_token_are_numbers_all_the_same() -> None:
    output = Output([last(0, first_token=None, total=0.0, output_tokens=0, batch_size=0.0)], 1)
    list(output.pieces())
    assert output.metrics()["time_to_first_token"] == output.metrics()["tokens_per_second"] == 0.0


def test_a_failure_reaches_the_reader() -> None:
    def failing() -> Any:
        yield Chunk("a")
        raise ValueError("no")

    pieces = Output(failing(), 1).pieces()
    assert next(pieces) == "a"
    with pytest.raises(ValueError, match="no"):
        next(pieces)
