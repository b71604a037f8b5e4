"""On a GPU the engine answers as generate() does, with graphs and without, and waits for the device once a step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from alpaca.base.load import load_model
from alpaca.serving.engine import Engine
from alpaca.serving.inputs import request_from_inputs
from alpaca.serving.limits import EngineLimits
from alpaca.serving.loading import load_base, open_engine
from alpaca.serving.request import GenerationRequest
from alpaca.serving.together import answers
from tests.conftest import make_base
from tests.serving.oracle import Oracle
from tests.serving.peft_adapters import EVERY_KIND, HEAD, make_adapters

pytestmark = pytest.mark.gpu

NAMES = ["none", "a", "b", "patterns", "a:0.5+b", "dora", "none", "head", "b"]
PROMPTS = [("hay " * (1 + 31 * n % 90), NAMES[n % len(NAMES)], 20 + 7 * n % 40) for n in range(27)]
Open = Callable[..., tuple[Engine, list[str]]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / "untied", tied=False)


@pytest.fixture(scope="module")
def roots(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapters(base, tmp_path_factory.mktemp("adapters"), {**EVERY_KIND, "head": HEAD})


@pytest.fixture
def opened(base: Path, roots: Path) -> Iterator[Open]:
    """Opens engines and closes them; what each says comes with it."""
    engines: list[Engine] = []

    def open_one(precision: str = "fp32", **limits: Any) -> tuple[Engine, list[str]]:
        said: list[str] = []
        loaded = load_base(str(base), precision, say=said.append)
        engines.append(open_engine(loaded, limits=EngineLimits(roots=(roots,), **limits), say=said.append))
        return engines[-1], said

    yield open_one
    for engine in engines:
        engine.close()


def request(prompt: str, adapter: str = "none", tokens: int = 24, **inputs: Any) -> GenerationRequest:
    given = {"temperature": 0.0, "prompt_template": "{prompt}", **inputs}
    return request_from_inputs(prompt=prompt, adapter=adapter, max_tokens=tokens, **given)


def texts(engine: Engine, requests: list[GenerationRequest]) -> list[str]:
    return [answer.text for answer in answers(engine, requests)]


@pytest.mark.parametrize("graphs", [None, False], ids=["graphs", "no graphs"])
def test_greedy_answers_are_those_of_generate(opened: Open, base: Path, roots: Path, graphs: bool | None) -> None:
    oracle = Oracle(base, roots)
    engine, said = opened(graphs=graphs)
    wanted = [oracle.text(prompt, adapter, max_tokens=tokens).strip() for prompt, adapter, tokens in PROMPTS]
    assert texts(engine, [request(*one) for one in PROMPTS]) == wanted
    for one, answer in zip(PROMPTS[:5], wanted, strict=False):
        assert texts(engine, [request(*one)]) == [answer]
    assert (engine.stats().replayed > 50) == (graphs is None), said
    assert not [line for line in said if "could not be captured" in line]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "nf4"])
def test_graphs_change_no_token(opened: Open, precision: str) -> None:
    """Answers alone, one after the other: rows of other answers change how a product is rounded."""
    prompts = [one for one in PROMPTS if one[1] != "dora"][:12]
    found = {}
    for graphs in (None, False):
        engine, said = opened(precision, graphs=graphs)
        found[graphs] = [texts(engine, [request(p, a, 8 if precision != "fp32" else t)])[0] for p, a, t in prompts]
        assert (engine.stats().replayed > 50) == (graphs is None), said
        engine.close()
    same = sum(a == b for a, b in zip(found[None], found[False], strict=True))
    assert same == len(prompts) if precision == "fp32" else same >= 0.7 * len(prompts)


def test_a_seed_gives_the_same_text_with_graphs_and_without(opened: Open) -> None:
    requests = [
        request("hay", temperature=1.1, seed=seed, repetition_penalty=1.2, presence_penalty=0.3, **kind)
        for seed in range(4) for kind in ({}, {"top_p": 0.9}, {"top_k": 5, "min_p": 0.02})
    ]  # fmt: skip
    found = []
    for graphs in (None, False):
        engine, _ = opened(graphs=graphs)
        found.append(texts(engine, requests))
        engine.close()
    assert found[0] == found[1] and len(set(found[0])) > 6


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_the_first_tokens_of_a_quantised_base_are_those_of_transformers(
    opened: Open, base: Path, precision: str
) -> None:
    model: Any = load_model(base, precision)
    engine, _ = opened(precision)
    prompts = [f"{number} hay and grass" for number in range(24)]
    got = texts(engine, [request(prompt, tokens=1) for prompt in prompts])
    tokenizer = Oracle(base).tokenizer
    same = 0
    for prompt, said in zip(prompts, got, strict=True):
        ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)], device=model.device)
        token = int(model(input_ids=ids).logits[0, -1].argmax())
        same += tokenizer.decode([token], skip_special_tokens=True, clean_up_tokenization_spaces=False).strip() == said
    assert same >= 0.8 * len(prompts)


def test_int8_says_why_it_has_no_graphs(opened: Open) -> None:
    engine, said = opened("int8")
    assert "graphs: none (each product in int8 asks the GPU for outliers and waits)" in said
    texts(engine, [request("hay")])
    assert engine.stats().replayed == 0


@pytest.mark.parametrize("graphs", [None, False], ids=["graphs", "no graphs"])
def test_a_step_waits_for_the_device_once(opened: Open, graphs: bool | None) -> None:
    engine, _ = opened(graphs=graphs)
    mixed = [
        request("hay " * (1 + n), name, 40, **sampling)
        for n, (name, sampling) in enumerate([
            ("none", {}), ("a", {"temperature": 1.0, "top_k": 40, "seed": 1}), ("a:0.5+b", {"repetition_penalty": 1.2}),
            ("none", {"temperature": 0.8, "seed": 2, "presence_penalty": 0.2, "min_tokens": 9}),
        ])
    ]  # fmt: skip
    for _ in range(2):  # adapters are loaded and graphs captured, which does wait
        texts(engine, mixed)
    before = engine.stats().steps
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            texts(engine, mixed)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [one for one in caught if "called a synchronizing" in str(one.message)]
    assert len(waits) == engine.stats().steps - before, {(one.filename, one.lineno) for one in waits}
