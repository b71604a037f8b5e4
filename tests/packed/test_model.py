"""Invariant 1: a pack gives the per-token losses and the gradients that its examples have one by one, by plain
transformers and PEFT."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from alpaca.base.load import load_model
from alpaca.errors import BadBase
from alpaca.packed.attention import PACKED, register
from alpaca.packed.batch import collate, label_count
from alpaca.packed.layers import lean_lora, make_lean
from alpaca.packed.model import PackedModel
from alpaca.prompts.encode import Encoded
from alpaca.training.fit import build_model, make_trainer
from alpaca.training.plan import make_plan
from tests.training.runs import settings

CPU = torch.device("cpu")
LORA: dict[str, Any] = {
    "r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM",
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}  # fmt: skip
# Lengths from 1 token on; one, several or all tokens trained; trained at the very start and the very end.
SHAPES: list[tuple[int, list[tuple[int, int]]]] = [
    (1, [(0, 1)]), (2, [(1, 2)]), (3, [(0, 3)]), (9, [(4, 9)]), (17, [(3, 6), (9, 10), (14, 17)]), (30, [(1, 30)]),
    (12, [(0, 2), (11, 12)]),
]  # fmt: skip


def make_examples() -> list[Encoded]:
    torch.manual_seed(9)
    return [
        Encoded(torch.randint(4, 300, (length,)).tolist(), spans, row) for row, (length, spans) in enumerate(SHAPES, 1)
    ]


def random_adapter(model: Any) -> None:
    torch.manual_seed(2)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(0.0, 0.2)


def plain_model(base: Path) -> Any:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), LoraConfig(**LORA))
    random_adapter(model)
    return model


def packed_model(base: Path) -> PackedModel:
    register()
    model = make_lean(load_model(base, "fp32", CPU, PACKED))
    peft = get_peft_model(model, lean_lora(LoraConfig(**LORA)))  # type: ignore[arg-type]
    random_adapter(peft)
    return PackedModel(peft)  # type: ignore[arg-type]


def labels_of(example: Encoded) -> list[int]:
    labels = [-100] * len(example)
    for start, end in example.trained:
        labels[start:end] = example.input_ids[start:end]
    return labels


def token_losses(model: Any, example: Encoded) -> Tensor:
    """The loss of each trained token but the first, in order, by the plain model."""
    logits = model(input_ids=torch.tensor([example.input_ids])).logits[0, :-1]
    wanted = torch.tensor(labels_of(example)[1:], dtype=torch.long)
    return functional.cross_entropy(logits, wanted, reduction="none")[wanted != -100]


def gradients(model: nn.Module) -> Iterator[Tensor]:
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None, name
            yield weight.grad


@pytest.mark.parametrize("base_name", ["tiny_base", "tiny_mha_base"])
def test_a_pack_gives_each_token_the_loss_it_has_alone(base_name: str, request: pytest.FixtureRequest) -> None:
    base, examples = request.getfixturevalue(base_name), make_examples()
    plain, packed = plain_model(base), packed_model(base)
    order = (4, 0, 6, 2, 5, 1, 3)
    batch = collate(order, examples)
    with torch.no_grad():
        wanted = torch.cat([token_losses(plain, examples[index]) for index in order])
        given = batch.inputs(CPU)
        got = torch.stack(
            [
                packed(**(given | {"label_positions": batch.label_positions[[n]], "targets": batch.targets[[n]]}))
                for n in range(len(batch.targets))
            ]
        )
        total = packed(**given)
    assert len(wanted) == len(got) == sum(map(label_count, examples))
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(total, wanted.sum(), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("base_name", ["tiny_base", "tiny_mha_base"])
@pytest.mark.parametrize("packs", [[(4, 0, 6, 2, 5, 1, 3)], [(0, 1), (2, 3), (), (4,), (5, 6)]], ids=["one", "several"])
def test_packs_give_the_gradients_of_the_library_s_loss(
    base_name: str, packs: list[tuple[int, ...]], request: pytest.FixtureRequest
) -> None:
    base, examples = request.getfixturevalue(base_name), make_examples()
    plain, packed = plain_model(base), packed_model(base)
    labels = sum(map(label_count, examples))
    for example in examples:
        if count := label_count(example):
            ids, wanted = torch.tensor([example.input_ids]), torch.tensor([labels_of(example)])
            loss = plain(input_ids=ids, labels=wanted).loss
            (loss * count / labels).backward()
    for pack in packs:
        (packed(**collate(pack, examples).inputs(CPU)) / labels).backward()
    pairs = list(zip(gradients(packed), gradients(plain), strict=True))
    assert max(float(grad.abs().max()) for grad, _ in pairs) > 1e-2
    for got, wanted_grad in pairs:
        torch.testing.assert_close(got, wanted_grad, atol=1e-4, rtol=1e-4)


def test_examples_of_a_pack_never_see_each_other(tiny_base: Path) -> None:
    """Another example in the pack may change, or go, and the loss of the first stays bit for bit."""
    packed, examples = packed_model(tiny_base), make_examples()

    def loss_of_first(pack: tuple[int, ...]) -> Tensor:
        batch = collate(pack, examples)
        mine = label_count(examples[pack[0]])
        return packed(
            **(batch.inputs(CPU) | {"label_positions": batch.label_positions[:mine], "targets": batch.targets[:mine]})
        )

    with torch.no_grad():
        before = loss_of_first((4, 5, 3))
        examples[5] = Encoded(list(reversed(examples[5].input_ids)), examples[5].trained)
        changed = loss_of_first((4, 5, 3))
        torch.testing.assert_close(loss_of_first((4,)), before, atol=1e-4, rtol=0)
    assert torch.equal(before, changed)


def test_an_idle_pack_costs_nothing_and_reaches_every_parameter(tiny_base: Path) -> None:
    packed = packed_model(tiny_base)
    loss = packed(**collate((), []).inputs(CPU))
    loss.backward()
    assert loss.item() == 0
    assert all(not grad.any() for grad in gradients(packed))


def test_bases_whose_head_is_not_plain_are_refused(tiny_base: Path) -> None:
    model = plain_model(tiny_base)
    model.get_base_model().config.final_logit_softcapping = 30.0
    with pytest.raises(BadBase, match="final_logit_softcapping"):
        PackedModel(model)
    model.get_base_model().config.final_logit_softcapping = None
    model.get_base_model().set_output_embeddings(nn.Linear(64, 512))
    with pytest.raises(BadBase, match="only plain linear heads without bias"):
        PackedModel(model)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "nf4"])
def test_an_evaluation_changes_nothing_in_what_is_trained_after_it(
    tiny_base: Path, rows: Path, tmp_path: Path, precision: str
) -> None:
    """bitsandbytes has layers that change for good when they are evaluated."""
    plan = make_plan(settings(tiny_base, rows, tmp_path / "out", quantization=precision), lambda line: None)
    trainer = make_trainer(plan, build_model(plan))
    random_adapter(trainer.packed)
    results = []
    for _ in range(2):
        trainer.packed.train().zero_grad()
        loss = trainer.packed(**collate((0, 1, 2), plan.train.examples).inputs(CPU))
        loss.backward()
        results.append((loss.detach(), [grad.clone() for grad in gradients(trainer.packed)]))
        trainer.validation_loss()
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))
