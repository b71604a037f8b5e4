"""What goes wrong on the way to other tools is found, and named."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from alpaca.export.agreement import Agreement, check
from alpaca.export.greedy import mean_loss
from alpaca.export.here import prove
from alpaca.export.in_memory import Transformers
from alpaca.export.leaving import Leaving
from alpaca.export.proof import Proof
from tests.conftest import make_base
from tests.export.conftest import of
from tests.serving.peft_adapters import make_adapter

TEMPLATE = "alpaca"


def make_speaker(folder: Path) -> Path:
    """A base whose answers end, mostly after some tokens, because its end token has a long row. Beside its files lies
    an adapter, `rs`."""
    from safetensors.torch import load_file, save_file

    base = make_base(folder / "speaker", seed=5)
    weights = load_file(base / "model.safetensors")
    weights["model.embed_tokens.weight"][2] *= 2.2
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    make_adapter(base, base / "rs", r=16, lora_alpha=8, use_rslora=True, template=TEMPLATE, spread=0.2,
                 target_modules=["q_proj", "v_proj", "up_proj", "down_proj"])  # fmt: skip
    return base


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_speaker(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def model(speaker: Path) -> Leaving:
    return of(speaker, speaker / "rs")


@pytest.fixture(scope="module")
def proof(model: Leaving) -> Proof:
    made = prove(model, "merged", {"model": "."}, "fp32", lambda line: None)
    assert any(answer.ended for answer in made.answers) and len(made.answers) == 40
    return made


def asked(model: Leaving, proof: Proof, **changed: Any) -> Agreement:
    """Check the merged model after something was changed on its way."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(model.base, dtype=torch.float32)
    with torch.no_grad():
        for name in model.weights.entries:
            loaded.get_parameter(name).copy_(changed.get("weights", model.weights).tensor(name))
    tokenizer = of(model.base).tokenizer
    tokenizer.chat_template = changed.get("jinja", model.jinja)
    tool = Transformers(loaded, tokenizer, changed.get("ends", model.ends))
    return check(proof, tool, mean_loss(loaded, proof.references))


def test_what_arrived_whole_answers_as_here(model: Leaving, proof: Proof) -> None:
    found = asked(model, proof)
    assert found.good and found.share == 1 and found.forks == 0 and found.ties == 0
    assert found.logprob_largest is not None and found.logprob_largest < 1e-3


def with_spec(model: Leaving, **spec: Any) -> Any:
    (used,) = model.strengths
    files = dataclasses.replace(used.files, spec=dataclasses.replace(used.files.spec, **spec))
    return dataclasses.replace(model, strengths=(dataclasses.replace(used, files=files),)).weights


FAULTS: dict[str, tuple[Callable[[Leaving], dict[str, Any]], str]] = {
    "an adapter that was not applied": (lambda m: {"weights": of(m.base).weights}, "the adapter is not applied"),
    "rsLoRA read as plain": (lambda m: {"weights": with_spec(m, use_rslora=False)}, "scale: .* rsLoRA"),
    "a template without its last line break": (
        lambda m: {"jinja": m.jinja.replace("### Response:\\n", "### Response:")}, "template: .* line break",
    ),
    "another template": (lambda m: {"jinja": of(m.base, template="chat").jinja}, "template: the very tokens"),
    "a turn end that is missing": (lambda m: {"ends": [3]}, "turn end: answers that ended here go on"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_named(model: Leaving, proof: Proof, fault: str) -> None:
    plant, named = FAULTS[fault]
    found = asked(model, proof, **plant(model))
    assert not found.good
    assert re.search(named, found.verdict), found.verdict


def test_a_base_of_the_same_shape_with_other_weights_is_found(model: Leaving, proof: Proof, tmp_path: Path) -> None:
    other = tmp_path / "base"
    shutil.copytree(model.base, other)
    shutil.copyfile(make_base(tmp_path / "other", seed=8) / "model.safetensors", other / "model.safetensors")
    found = asked(model, proof, weights=of(other).weights)
    assert not found.good and ("weights" in found.verdict or "precision" in found.verdict)
    assert found.first_difference is not None and found.first_difference["here"] != found.first_difference["there"]


def test_the_strength_that_was_asked_for_must_arrive(speaker: Path, model: Leaving) -> None:
    half = of(speaker, f"{speaker / 'rs'}:0.5")
    made = prove(half, "merged", {"model": "."}, "fp32", lambda line: None)
    assert asked(half, made).good
    found = asked(half, made, weights=model.weights)
    assert not found.good and "strength was 1" in found.verdict


def test_answers_here_are_those_of_the_engine(speaker: Path, proof: Proof) -> None:
    """What exports are held against is what serving says."""
    from alpaca.prompts.example import Example
    from alpaca.serving.composition import Composition, Part
    from alpaca.serving.loading import load_base, open_engine
    from alpaca.serving.request import GenerationRequest
    from alpaca.serving.together import answers

    engine = open_engine(load_base(str(speaker), "fp32", say=lambda line: None), say=lambda line: None)
    try:
        requests = [
            GenerationRequest(
                example=Example.from_messages(ours.messages), max_tokens=ours.most, temperature=0.0,
                adapter=Composition((Part(speaker / "rs"),)),
            )
            for ours in proof.answers
        ]  # fmt: skip
        found = answers(engine, requests)
    finally:
        engine.close()
    for ours, answer in zip(proof.answers, found, strict=True):
        assert answer.text.strip() in (ours.text.strip(), ours.text.partition("\n### Instruction:")[0].strip())
