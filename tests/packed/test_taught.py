"""Rows that the base teaches: in a pack their loss is the divergence from the base that plain PEFT gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from alpaca.packed.batch import collate, label_count
from alpaca.packed.taught import TaughtModel, collate_taught, without_adapter
from alpaca.training.fit import build_model
from alpaca.training.plan import make_plan
from tests.packed.test_model import CPU, gradients, make_examples, packed_model, plain_model, random_adapter
from tests.training.runs import settings

FIRST, WEIGHT = 3, 2.5  # the examples from this index on are taught


def taught_model(base: Path) -> TaughtModel:
    return TaughtModel(packed_model(base).peft)


def inputs(pack: tuple[int, ...]) -> dict[str, Any]:
    examples = make_examples()
    return collate(pack, examples).inputs(CPU) | {"taught": collate_taught(pack, examples, FIRST, WEIGHT).inputs(CPU)}


def plain_loss(model: Any, index: int) -> Tensor:
    """Of one example alone, by transformers and PEFT."""
    example = make_examples()[index]
    ids = torch.tensor([example.input_ids])
    labelled = [place - 1 for start, end in example.trained for place in range(max(start, 1), end)]
    if not labelled:
        return torch.zeros((), requires_grad=True)
    ours = torch.log_softmax(model(input_ids=ids).logits[0, labelled], dim=-1)
    if index < FIRST:
        return functional.nll_loss(ours, ids[0, [place + 1 for place in labelled]], reduction="sum")
    with torch.no_grad(), model.disable_adapter():
        theirs = torch.log_softmax(model(input_ids=ids).logits[0, labelled], dim=-1)
    return WEIGHT * functional.kl_div(ours, theirs, reduction="sum", log_target=True)


@pytest.mark.parametrize("base_name", ["tiny_base", "tiny_mha_base"])
@pytest.mark.parametrize("packs", [[(4, 0, 6, 2, 5, 1, 3)], [(0, 1), (2, 3), (), (4,), (5, 6)]], ids=["one", "several"])
def test_packs_give_the_losses_and_gradients_that_examples_have_alone(
    base_name: str, packs: list[tuple[int, ...]], request: pytest.FixtureRequest
) -> None:
    base = request.getfixturevalue(base_name)
    plain, packed = plain_model(base), taught_model(base)
    for pack in packs:
        wanted = sum((plain_loss(plain, index) for index in pack), torch.zeros((), requires_grad=True))
        got = packed(**inputs(pack))
        torch.testing.assert_close(got, wanted, atol=1e-3, rtol=1e-4)
        wanted.backward()
        got.backward()
    pairs = list(zip(gradients(packed), gradients(plain), strict=True))
    assert max(float(grad.abs().max()) for grad, _ in pairs) > 1e-2
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=5e-3, rtol=1e-3)


def test_the_labels_of_taught_rows_are_counted_in_the_order_of_the_pack() -> None:
    examples = make_examples()
    taught = collate_taught((4, 0, 6, 2), examples, FIRST, WEIGHT)
    counts = [label_count(examples[index]) for index in (4, 0, 6, 2)]
    assert taught.labels.tolist() == [*range(counts[0]), *range(sum(counts[:2]), sum(counts[:3]))]
    assert taught.batch.input_ids[0].tolist() == examples[4].input_ids + examples[6].input_ids
    assert len(taught.batch.targets) == len(taught.labels)


def test_a_pack_without_taught_rows_costs_what_it_costs_without_a_teacher(tiny_base: Path) -> None:
    packed = taught_model(tiny_base)
    with torch.no_grad():
        for pack in ((0, 1, 2), ()):
            given = inputs(pack)
            with_teacher = packed(**given)
            del given["taught"]
            assert torch.equal(with_teacher, packed(**given))


def test_an_untrained_adapter_diverges_from_nothing_and_the_adapter_is_on_again(tiny_base: Path) -> None:
    packed = taught_model(tiny_base)
    given = inputs((3, 4))
    with torch.no_grad():
        diverged = packed(**given)
        with without_adapter(packed.peft):
            assert packed(**given).item() == 0
        assert torch.equal(packed(**given), diverged) and diverged > 1e-2
    assert all(weight.requires_grad for name, weight in packed.named_parameters() if "lora_" in name)


@pytest.mark.parametrize(
    "changes",
    [{"quantization": "fp32"}, {"quantization": "bf16"}, {"quantization": "int8"}, {"quantization": "nf4"},
     {"use_dora": True}, {"lora_dropout": 0.5}, {"gradient_checkpointing": True}],
    ids=str,
)  # fmt: skip
def test_the_teacher_is_the_base_however_it_is_held_and_adapted(
    tiny_base: Path, rows: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """What a fresh adapter diverges by is nothing: its B is zero. What a changed one does is reproducible."""
    config = settings(tiny_base, rows, tmp_path / "out", replay_ratio=0.3, replay_kl=1.0, **changes)
    plan = make_plan(config, lambda line: None)
    model = build_model(plan).train()
    first = len(plan.train.examples)
    pack = (first, first + 1)

    def loss() -> Tensor:
        torch.manual_seed(1)
        taught = collate_taught(pack, plan.examples, first, 1.0).inputs(CPU)
        return model(**collate(pack, plan.examples).inputs(CPU), taught=taught)

    assert loss().item() == pytest.approx(0, abs=1e-3 if changes.get("use_dora") else 1e-6)
    random_adapter(model)
    changed = loss()
    changed.backward()
    assert changed > 1e-3 and torch.equal(loss(), changed)
    assert any(bool(grad.any()) for grad in gradients(model))
