"""The engine on the real base: transformers' answers, adapters side by side, and text of other scripts whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from alpaca.serving.engine import Engine
from alpaca.serving.inputs import request_from_inputs
from alpaca.serving.limits import EngineLimits
from alpaca.serving.loading import load_base, open_engine
from alpaca.serving.stream import Chunk
from tests.serving.oracle import Oracle
from tests.serving.peft_adapters import make_adapters

pytestmark = pytest.mark.real

KINDS = {
    "a": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], "r": 8},
    "dora": {"use_dora": True},
}
QUESTIONS = ["What is the capital of France?", "Say this again: 你好，羊驼 🦙"]


@pytest.fixture(scope="module")
def roots(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapters(smollm2, tmp_path_factory.mktemp("adapters"), KINDS, spread=0.1)


@pytest.fixture(scope="module")
def engine(smollm2: Path, roots: Path) -> Iterator[Engine]:
    limits = EngineLimits(context=1024, roots=(roots,))
    opened = open_engine(load_base(str(smollm2), "fp32"), limits=limits)
    yield opened
    opened.close()


def text(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def ask(engine: Engine, **inputs: object) -> list[Chunk]:
    return list(engine.submit(request_from_inputs(**{"temperature": 0.0, **inputs})))  # type: ignore[arg-type]


def test_greedy_answers_side_by_side_are_those_of_generate_and_peft(smollm2: Path, roots: Path, engine: Engine) -> None:
    oracle = Oracle(smollm2, roots)
    asked = [(QUESTIONS[0], "none"), (QUESTIONS[0], "a"), (QUESTIONS[1], "dora"), (QUESTIONS[1], "none")]
    streams = [
        engine.submit(request_from_inputs(prompt=question, adapter=name, temperature=0.0, max_tokens=12))
        for question, name in asked
    ]
    answers = [text(list(stream)) for stream in streams]
    assert answers == [oracle.chat(question, name, max_tokens=12) for question, name in asked]
    assert answers[0] != answers[1] and answers[2] != answers[3]


def test_the_next_turn_of_a_conversation_is_not_computed_from_its_beginning(engine: Engine) -> None:
    messages = [{"role": "user", "content": "Name three animals that eat grass, and say a sentence about each."}]
    first = ask(engine, messages=messages, max_tokens=30)
    messages += [{"role": "assistant", "content": text(first)}, {"role": "user", "content": "And one that eats fish?"}]
    second = ask(engine, messages=messages, max_tokens=10)
    before, now = first[-1].usage, second[-1].usage
    assert before is not None and now is not None
    assert before.input_tokens <= now.reused_tokens < now.input_tokens


def test_it_knows_the_capital_of_france(engine: Engine) -> None:
    said = text(ask(engine, prompt="What is the capital of France?", max_tokens=40))
    assert "Paris" in said
    assert "<|" not in said


def test_an_answer_in_the_alpaca_template_ends_before_the_next_header(engine: Engine) -> None:
    said = text(ask(engine, prompt="Name two animals.", prompt_template="alpaca", max_tokens=120))
    assert said.strip() and "### Instruction" not in said
