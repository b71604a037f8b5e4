"""A model all of whose weights are trained has the loss and gradients of transformers' own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from alpaca.base.load import load_model
from alpaca.packed import attention
from alpaca.packed.batch import collate
from alpaca.packed.layers import make_lean
from alpaca.packed.whole import WholeModel
from alpaca.prompts.encode import Encoded

CPU = torch.device("cpu")
ROWS = [Encoded([1, 40, 41, 42, 43, 2], [(3, 6)]), Encoded([1, 50, 51, 52], [(2, 4)]), Encoded([1, 60, 61], [(1, 3)])]


def whole(base: Path, compute: torch.dtype) -> WholeModel:
    attention.register()
    model = load_model(base, "fp32", CPU, attention.PACKED)
    make_lean(model)
    model.requires_grad_(True)
    return WholeModel(model, compute)


def plain(base: Path) -> tuple[float, dict[str, torch.Tensor]]:
    """Summed loss and gradients of transformers' model on the rows, one by one."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    total = 0.0
    for row in ROWS:
        ids = torch.tensor([row.input_ids])
        labels = torch.full_like(ids, -100)
        for start, end in row.trained:
            labels[0, start:end] = ids[0, start:end]
        logits = model(input_ids=ids).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, labels[0, 1:], ignore_index=-100, reduction="sum")
        loss.backward()
        total += loss.item()
    return total, {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("base_name", ["tiny_base", "tiny_mha_base"])
def test_loss_and_every_gradient_are_transformers_own(base_name: str, request: pytest.FixtureRequest) -> None:
    base = request.getfixturevalue(base_name)
    model = whole(base, torch.float32)
    loss = model(**collate((0, 1, 2), ROWS).inputs(CPU))
    loss.backward()
    wanted, gradients = plain(base)
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    got = {name.removeprefix("peft."): weight.grad for name, weight in model.named_parameters()}
    torch.testing.assert_close(got, gradients, rtol=1e-4, atol=1e-4)


def test_in_bf16_the_gradients_are_fp32_and_near(tiny_mha_base: Path) -> None:
    model = whole(tiny_mha_base, torch.bfloat16)
    loss = model(**collate((0, 1, 2), ROWS).inputs(CPU))
    loss.backward()
    wanted, gradients = plain(tiny_mha_base)
    assert loss.item() == pytest.approx(wanted, rel=0.02)
    for name, weight in model.named_parameters():
        expected = gradients[name.removeprefix("peft.")]
        assert weight.grad is not None and weight.grad.dtype == torch.float32
        cosine = torch.nn.functional.cosine_similarity(weight.grad.flatten(), expected.flatten(), dim=0)
        assert cosine > 0.98, name


def test_a_micro_batch_without_a_label_reaches_every_weight(tiny_mha_base: Path) -> None:
    """Else a process without a row of its own would leave the others waiting for its gradients."""
    model = whole(tiny_mha_base, torch.float32)
    loss = model(**collate((), ROWS).inputs(CPU))
    loss.backward()
    assert loss.item() == 0
    assert all(weight.grad is not None and not weight.grad.any() for weight in model.parameters())
