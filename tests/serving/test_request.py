"""Requests are refused before any work begins, with the field, its value and its limit."""

from __future__ import annotations

import math
from typing import Any

import pytest

from alpaca.errors import AlpacaError, BadMessages, ConflictingInputs, EmptyPrompt, OutOfRange
from alpaca.prompts.example import Example
from alpaca.serving.inputs import parse_stop_sequences, request_from_inputs
from alpaca.serving.request import BOUNDS, GenerationRequest


@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_both_ends_of_each_range_are_allowed_and_nothing_beyond(name: str) -> None:
    low, high = BOUNDS[name]
    others = {"max_tokens": 131_072} if name == "min_tokens" else {}
    for value in (low, high):
        assert getattr(GenerationRequest(Example.single("hi"), **{**others, name: value}), name) == value
    for value in (low - 1, high + 1):
        with pytest.raises(OutOfRange, match=f"^E1003 OutOfRange: {name} is "):
            GenerationRequest(Example.single("hi"), **{**others, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", math.nan), ("top_p", math.inf), ("max_tokens", 1.5), ("n", True), ("seed", "1"), ("top_k", None)],
)
def test_what_is_no_such_number_is_refused(name: str, value: Any) -> None:
    with pytest.raises(OutOfRange, match=name):
        GenerationRequest(Example.single("hi"), **{name: value})


@pytest.mark.parametrize(
    ("inputs", "error", "says"),
    [
        ({}, EmptyPrompt, "nothing to answer"),
        ({"prompt": " \n"}, EmptyPrompt, "nothing to answer"),
        ({"input": "only context"}, EmptyPrompt, "nothing to answer"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, ConflictingInputs, "messages and prompt"),
        ({"messages": [{"role": "user"}]}, BadMessages, "content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, BadMessages, "robot"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            BadMessages,
            "must be from the user",
        ),
        (
            {"system_prompt": "s", "messages": [{"role": "system", "content": "t"}, {"role": "user", "content": "a"}]},
            ConflictingInputs,
            "system_prompt",
        ),
        ({"messages": [{"role": "user", "content": "a"}] * 1001}, OutOfRange, "1,001"),
        ({"prompt": "a", "max_tokens": 9, "max_new_tokens": 8}, ConflictingInputs, "max_new_tokens"),
        ({"prompt": "a", "max_tokens": 9, "total_tokens": 8}, ConflictingInputs, "total_tokens"),
        ({"prompt": "a", "max_tokens": 4, "min_tokens": 5}, ConflictingInputs, "min_tokens 5"),
        ({"prompt": "a", "stop_sequences": ",".join("abcdefghijklmnopq")}, OutOfRange, "17"),
        ({"prompt": "a", "stop_sequences": '["a", 1]'}, OutOfRange, "JSON list"),
        ({"prompt": "a", "stop_sequences": "x" * 257}, OutOfRange, "256"),
        ({"prompt": "a" * 1_000_001}, OutOfRange, "1,000,001"),
        ({"prompt": "a", "n": 6}, OutOfRange, "n is 6"),
    ],
)
def test_bad_inputs_are_refused_with_a_code(inputs: dict[str, Any], error: type[AlpacaError], says: str) -> None:
    with pytest.raises(error) as caught:
        request_from_inputs(**inputs)
    assert str(caught.value).startswith(f"{error.code} {error.__name__}: ")
    assert says in str(caught.value)


def test_older_names_mean_the_newer() -> None:
    request = request_from_inputs(prompt="a", max_new_tokens=7, min_new_tokens=3)
    assert (request.max_tokens, request.min_tokens) == (7, 3)
    assert request_from_inputs(prompt="a", max_tokens=7, max_new_tokens=7).max_tokens == 7
    assert request_from_inputs(prompt="a", total_tokens=50).total_tokens == 50


def test_a_system_prompt_goes_with_messages_that_have_none() -> None:
    request = request_from_inputs(system_prompt="s", messages=[{"role": "user", "content": "a"}])
    assert request.example == Example.single("a", system="s")


def test_seed_zero_is_a_seed() -> None:
    assert request_from_inputs(prompt="a", seed=0).seed == 0


@pytest.mark.parametrize(
    ("text", "stops"),
    [
        ("", ()),
        ("END", ("END",)),
        ("a, b,", ("a", " b")),
        ('["\\n\\n", "a,b"]', ("\n\n", "a,b")),
        ("[INST],[/INST]", ("[INST]", "[/INST]")),
        ("早,🦙", ("早", "🦙")),
    ],
)
def test_stop_sequences_are_commas_or_a_json_list(text: str, stops: tuple[str, ...]) -> None:
    assert parse_stop_sequences(text) == stops
