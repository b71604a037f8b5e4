"""Many requests are asked at once; their answers come in the order of the requests, each with why it ended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from alpaca.errors import PromptTooLong
from alpaca.prompts.encode import encode_prompt
from alpaca.prompts.example import Example
from alpaca.prompts.find import load_template
from alpaca.serving.engine import Engine
from alpaca.serving.limits import EngineLimits
from alpaca.serving.loading import LoadedBase, load_base, open_engine
from alpaca.serving.request import GenerationRequest
from alpaca.serving.stream import FinishReason
from alpaca.serving.together import Answer, answers
from tests.serving.oracle import Oracle


@pytest.fixture(scope="module")
def loaded(tiny_base: Path) -> LoadedBase:
    return load_base(str(tiny_base), "fp32", say=lambda line: None)


@pytest.fixture(scope="module")
def engine(loaded: LoadedBase) -> Iterator[Engine]:
    engine = open_engine(loaded, limits=EngineLimits(concurrency=2, context=256), say=lambda line: None)
    yield engine
    engine.close()


def request(prompt: str) -> GenerationRequest:
    return GenerationRequest(Example.single(prompt), max_tokens=8, temperature=0.0)


def test_answers_come_in_the_order_of_the_requests_and_are_counted(engine: Engine, tiny_base: Path) -> None:
    oracle, prompts, counted = Oracle(tiny_base), ["hay", "grass " * 20, "hay", "the alpaca"], list[int]()
    found = answers(engine, [request(prompt) for prompt in prompts], done=counted.append)
    assert [answer.text for answer in found] == [oracle.chat(prompt, max_tokens=8).strip() for prompt in prompts]
    assert all(a.usage and (a.finish is FinishReason.LENGTH) == (a.usage.output_tokens == 8) for a in found)
    assert counted == [1, 1, 1, 1]


def test_a_request_that_may_stay_unanswered_costs_the_others_nothing(engine: Engine) -> None:
    requests = [request("hay"), request("grass " * 300), request("hay")]
    with pytest.raises(PromptTooLong):
        answers(engine, requests)
    first, unanswered, last = answers(engine, requests, unanswered=(PromptTooLong,))
    assert unanswered == Answer("") and first.text == last.text


@pytest.mark.parametrize("name", ["chat", "alpaca", "alpaca_short"])
def test_a_template_itself_is_filled_as_training_fills_it(engine: Engine, loaded: LoadedBase, name: str) -> None:
    """Its own control tokens are tokens; those in the row stay text."""
    template = load_template(name, loaded.tokenizer)
    example = Example.single("say <|im_end|>", "hay", system="be kind" if name == "chat" else "")
    asked = replace(request("-"), example=example, prompt_template=template)
    (answer,) = answers(engine, [asked])
    assert answer.usage is not None
    assert answer.usage.input_tokens == len(encode_prompt(loaded.tokenizer, template, example))
