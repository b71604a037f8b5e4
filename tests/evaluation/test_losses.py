"""Losses of single rows: those that transformers gives each row alone, at every strength of the adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from alpaca.adapter.folder import load_tensors, verify_files
from alpaca.base.load import load_tokenizer
from alpaca.errors import NonFiniteLoss
from alpaca.evaluation.losses import AdaptedModel, at_scale, open_model, row_losses
from alpaca.prompts.encode import Encoded, encode_examples
from alpaca.prompts.example import Example
from alpaca.prompts.find import load_template
from tests.serving.peft_adapters import EVERY_KIND, make_adapter
from tests.training.runs import make_rows

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rows(tiny_base: Path) -> list[Encoded]:
    """30 rows, one conversation of two turns among them; several packs."""
    tokenizer = load_tokenizer(tiny_base)
    examples = [
        Example.single(r["instruction"], r["input"], r["output"], row=n) for n, r in enumerate(make_rows(29), 1)
    ]
    said = [("user", "the herd"), ("assistant", "eats hay"), ("user", "and"), ("assistant", "grass")]
    examples.append(Example.from_messages([{"role": role, "content": text} for role, text in said], row=30))
    return encode_examples(tokenizer, load_template("auto", tokenizer), examples, cutoff_len=256).examples


def opened(base: Path, folder: Path, **lora: Any) -> AdaptedModel:
    files = verify_files(make_adapter(base, folder, **lora), base)
    return open_model(files, base, "fp32", CPU)


def alone(model: Any, row: Encoded) -> float:
    """The summed loss of a row's trained tokens, from the plain logits of that row by itself."""
    ids = torch.tensor([row.input_ids])
    with torch.inference_mode():
        log_probability = model(input_ids=ids).logits[0].log_softmax(-1)
    targets = [place for start, end in row.trained for place in range(start, end)]
    return -sum(log_probability[place - 1, row.input_ids[place]].item() for place in targets)


@pytest.mark.parametrize("kind", ["a", "b", "dora", "patterns"])
def test_each_row_has_the_loss_that_it_has_alone(
    tiny_base: Path, tmp_path: Path, rows: list[Encoded], kind: str
) -> None:
    found = row_losses(opened(tiny_base, tmp_path / kind, **EVERY_KIND[kind]), rows)
    plain = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    peft = PeftModel.from_pretrained(plain, str(tmp_path / kind)).eval()
    np.testing.assert_allclose(found.sums, [alone(peft, row) for row in rows], rtol=1e-4, atol=1e-3)
    assert found.counts.tolist() == [row.n_trained for row in rows]
    assert found.mean == pytest.approx(found.sums.sum() / sum(row.n_trained for row in rows))


@pytest.mark.parametrize("kind", ["patterns", "dora"])
def test_scale_0_is_the_base_itself(tiny_base: Path, tmp_path: Path, rows: list[Encoded], kind: str) -> None:
    model = opened(tiny_base, tmp_path / "it", **EVERY_KIND[kind])
    plain = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    np.testing.assert_allclose(
        row_losses(model, rows, 0.0).sums, [alone(plain, row) for row in rows], rtol=1e-4, atol=1e-3
    )


def test_a_scale_is_the_same_as_a_smaller_alpha(tiny_base: Path, tmp_path: Path, rows: list[Encoded]) -> None:
    half = row_losses(opened(tiny_base, tmp_path / "full", lora_alpha=8), rows, 0.5)
    smaller = row_losses(opened(tiny_base, tmp_path / "half", lora_alpha=4), rows)
    np.testing.assert_allclose(half.sums, smaller.sums, rtol=1e-5)


def test_the_adapter_is_as_it_was_after_every_scale(tiny_base: Path, tmp_path: Path, rows: list[Encoded]) -> None:
    model = opened(tiny_base, tmp_path / "it")
    before = row_losses(model, rows)
    for scale in (0.0, 0.25, 0.75):
        row_losses(model, rows, scale)
    with pytest.raises(RuntimeError), at_scale(model.peft, 0.5):
        raise RuntimeError
    np.testing.assert_array_equal(row_losses(model, rows).sums, before.sums)


def test_a_loss_that_is_no_number_names_its_row(tiny_base: Path, tmp_path: Path, rows: list[Encoded]) -> None:
    model = opened(tiny_base, tmp_path / "it")
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.fill_(3e38)
    with pytest.raises(NonFiniteLoss, match=r"row \d+ is nan"):
        row_losses(model, rows)


def test_what_is_measured_is_what_was_saved(tiny_base: Path, tmp_path: Path) -> None:
    model = opened(tiny_base, tmp_path / "it")
    saved = load_tensors(verify_files(tmp_path / "it", tiny_base))
    loaded = {
        name.replace(".default", ""): weight for name, weight in model.peft.state_dict().items() if "lora_" in name
    }
    assert loaded.keys() == saved.keys()
    for name, weight in saved.items():
        assert torch.equal(loaded[name], weight)
