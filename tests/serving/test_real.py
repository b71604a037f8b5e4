"""The engine on the real base: transformers' answers, and text of other scripts whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from alpaca.base import load_model, load_tokenizer
from alpaca.serving.engine import GenerateEngine
from alpaca.serving.inputs import request_from_inputs
from alpaca.serving.loading import load_base, open_engine

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def engine(smollm2: Path) -> Iterator[GenerateEngine]:
    opened = open_engine(load_base(str(smollm2), "fp32"))
    yield opened
    opened.close()


def answer(engine: GenerateEngine, **inputs: Any) -> str:
    return "".join(chunk.text for chunk in engine.submit(request_from_inputs(**{"temperature": 0.0, **inputs})))


def test_greedy_answers_are_those_of_generate(smollm2: Path, engine: GenerateEngine) -> None:
    model, tokenizer = load_model(smollm2, "fp32"), load_tokenizer(smollm2)
    for prompt in ("What is the capital of France?", "Say this again: 你好，羊驼 🦙"):
        messages = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24)
        expected = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert answer(engine, prompt=prompt, max_tokens=24) == expected


def test_it_knows_the_capital_of_france(engine: GenerateEngine) -> None:
    said = answer(engine, prompt="What is the capital of France?", max_tokens=40)
    assert "Paris" in said
    assert "<|" not in said


def test_an_answer_in_the_alpaca_template_ends_before_the_next_header(engine: GenerateEngine) -> None:
    said = answer(engine, prompt="Name two animals.", prompt_template="alpaca", max_tokens=120)
    assert said.strip() and "### Instruction" not in said
