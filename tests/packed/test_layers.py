"""Lean layers compute what the layers they stand for compute, forward and backward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from alpaca.packed.layers import (
    LeanLoraLinear,
    LeanRmsNorm,
    LeanSwiglu,
    LoraFunction,
    RmsNormFunction,
    SwigluFunction,
    SwigluLoraFunction,
    lean_lora,
    make_lean,
)

LORA: dict[str, Any] = {
    "r": 3, "lora_alpha": 6, "task_type": "CAUSAL_LM",
    "target_modules": ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"],
}  # fmt: skip


def doubles(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


# --- the functions against finite differences and against plain operations ----------------------------------------
@pytest.mark.parametrize("bias", [True, False])
def test_lora_function(bias: bool) -> None:
    x, a, b = doubles(5, 4), doubles(2, 4), doubles(3, 2)
    weight = torch.randn(3, 4, dtype=torch.float64)
    offset = torch.randn(3, dtype=torch.float64) if bias else None
    assert torch.autograd.gradcheck(
        lambda *given: LoraFunction.apply(given[0], weight, offset, *given[1:], 0.7), (x, a, b)
    )
    plain = nn.functional.linear(x, weight, offset) + 0.7 * (x @ a.t()) @ b.t()
    torch.testing.assert_close(LoraFunction.apply(x, weight, offset, a, b, 0.7), plain)


def test_lora_function_where_the_input_needs_no_gradient() -> None:
    x, weight = torch.randn(5, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    a, b = doubles(2, 4), doubles(3, 2)
    assert torch.autograd.gradcheck(lambda *given: LoraFunction.apply(x, weight, None, *given, 0.7), (a, b))


def test_swiglu_function() -> None:
    gate, up = doubles(5, 4), doubles(5, 4)
    assert torch.autograd.gradcheck(SwigluFunction.apply, (gate, up))
    torch.testing.assert_close(SwigluFunction.apply(gate, up), nn.functional.silu(gate) * up)


@pytest.mark.parametrize("bias", [True, False])
def test_swiglu_lora_function(bias: bool) -> None:
    gate, up, a, b = doubles(5, 4), doubles(5, 4), doubles(2, 4), doubles(3, 2)
    weight = torch.randn(3, 4, dtype=torch.float64)
    offset = torch.randn(3, dtype=torch.float64) if bias else None

    def apply(gate: Tensor, up: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return SwigluLoraFunction.apply(gate, up, weight, offset, a, b, 0.7)

    assert torch.autograd.gradcheck(apply, (gate, up, a, b))
    plain = LoraFunction.apply(nn.functional.silu(gate) * up, weight, offset, a, b, 0.7)
    torch.testing.assert_close(apply(gate, up, a, b), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_equals_the_library_s(dtype: torch.dtype) -> None:
    norm = LlamaRMSNorm(16, eps=1e-5).to(dtype)
    norm.weight.data.normal_()
    norm.requires_grad_(False)
    grads = []
    for layer in (norm, LeanRmsNorm(norm)):
        x = (torch.arange(48, dtype=torch.float32).reshape(3, 16).sin() * 3).to(dtype).requires_grad_()
        out = layer(x)
        out.float().cos().sum().backward()
        grads.append((out, x.grad))
    assert torch.equal(grads[0][0], grads[1][0])
    assert grads[1][1] is not None and grads[1][1].dtype == dtype
    torch.testing.assert_close(grads[0][1], grads[1][1])


def test_rms_norm_function_has_the_right_gradient() -> None:
    """The mean is taken in fp32, so finite differences need a coarse step."""
    weight = torch.randn(6, dtype=torch.float64)
    x = doubles(4, 6)
    assert torch.autograd.gradcheck(
        lambda x: RmsNormFunction.apply(x, weight, 1e-6), (x,), eps=1e-2, atol=1e-3, rtol=1e-2
    )


# --- whole models -------------------------------------------------------------------------------------------------
def models(base: Path, **lora: Any) -> tuple[Any, Any]:
    """(plain, lean): the same base with the same random adapter, once as PEFT builds it and once lean."""
    built = []
    for lean in (False, True):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).requires_grad_(False)
        config = LoraConfig(**(LORA | lora))
        if lean:
            make_lean(model)
            config = lean_lora(config)
        torch.manual_seed(1)
        peft = get_peft_model(model, config)
        torch.manual_seed(2)
        with torch.no_grad():
            for name, weight in peft.named_parameters():
                if "lora_B" in name:
                    weight.normal_(0.0, 0.3)
        built.append(peft)
    return built[0], built[1]


IDS = torch.arange(5, 45).reshape(2, 20)


def outcome(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    torch.manual_seed(3)
    out = model(input_ids=IDS, labels=IDS)
    out.loss.backward()
    return out.logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def assert_same(plain: Any, lean: Any, tolerance: float = 2e-5) -> None:
    (logits, grads), (lean_logits, lean_grads) = outcome(plain), outcome(lean)
    torch.testing.assert_close(lean_logits, logits, atol=tolerance, rtol=tolerance)
    assert lean_grads.keys() == grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(lean_grads[name], grad, atol=tolerance, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_a_lean_model_gives_the_same_logits_and_gradients(tiny_base: Path) -> None:
    plain, lean = models(tiny_base)
    kinds = {type(module) for module in lean.modules()}
    assert {LeanLoraLinear, LeanSwiglu, LeanRmsNorm} <= kinds
    assert plain.state_dict().keys() == lean.state_dict().keys()
    assert_same(plain.train(), lean.train())


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["gate_proj"], ["down_proj"]])
def test_adapting_only_some_layers(tiny_mha_base: Path, targets: list[str]) -> None:
    assert_same(*models(tiny_mha_base, target_modules=targets))


def test_rank_stabilised_scaling(tiny_base: Path) -> None:
    assert_same(*models(tiny_base, use_rslora=True))


@pytest.mark.parametrize("changes", [{"lora_dropout": 0.3}, {"use_dora": True}])
def test_what_the_lean_layer_does_not_cover_is_left_to_peft(tiny_base: Path, changes: dict[str, Any]) -> None:
    plain, lean = models(tiny_base, **changes)
    layer = next(module for module in lean.modules() if isinstance(module, LeanLoraLinear))
    lean.train()
    assert layer.lean_parts() is None
    assert_same(plain.train(), lean)


def test_dropout_is_off_in_evaluation_and_the_layer_lean_again(tiny_base: Path) -> None:
    plain, lean = models(tiny_base, lora_dropout=0.3)
    assert_same(plain.eval(), lean.eval())
    assert next(m for m in lean.modules() if isinstance(m, LeanLoraLinear)).lean_parts() is not None


def test_disabled_adapter_is_the_base(tiny_base: Path) -> None:
    _, lean = models(tiny_base)
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    with torch.no_grad(), lean.disable_adapter():
        torch.testing.assert_close(lean(input_ids=IDS).logits, base(input_ids=IDS).logits, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        assert (lean(input_ids=IDS).logits - base(input_ids=IDS).logits).abs().max() > 0.1


def test_merged_and_unmerged_again(tiny_base: Path) -> None:
    _, lean = models(tiny_base)
    with torch.no_grad():
        before = lean(input_ids=IDS).logits
        lean.merge_adapter()
        torch.testing.assert_close(lean(input_ids=IDS).logits, before, atol=1e-4, rtol=1e-4)
        lean.unmerge_adapter()
        torch.testing.assert_close(lean(input_ids=IDS).logits, before, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(lean.merge_and_unload()(input_ids=IDS).logits, before, atol=1e-4, rtol=1e-4)


def test_two_adapters_at_once_are_left_to_peft(tiny_base: Path) -> None:
    plain, lean = models(tiny_base)
    for model in (plain, lean):
        torch.manual_seed(5)
        model.add_adapter("second", LoraConfig(**LORA, init_lora_weights=False))
        model.base_model.set_adapter(["default", "second"])
    with torch.no_grad():
        torch.testing.assert_close(lean(input_ids=IDS).logits, plain(input_ids=IDS).logits, atol=2e-5, rtol=2e-5)


def test_activations_computed_again_change_nothing(tiny_base: Path) -> None:
    plain, lean = models(tiny_base)
    lean.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    lean.get_base_model().enable_input_require_grads()
    assert_same(plain.train(), lean.train())


def test_other_activations_and_norms_are_left_alone() -> None:
    class Mlp(nn.Module):
        def __init__(self, act: nn.Module) -> None:
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
            self.act_fn = act

    class GemmaRMSNorm(nn.Module):
        pass

    model = nn.ModuleDict({"gelu": Mlp(nn.GELU()), "silu": Mlp(nn.SiLU()), "norm": GemmaRMSNorm()})
    make_lean(model)
    assert {name: type(child).__name__ for name, child in model.items()} == {
        "gelu": "Mlp", "silu": "LeanSwiglu", "norm": "GemmaRMSNorm",
    }  # fmt: skip


def test_several_adapters_in_effect_are_one_of_all_their_ranks(tiny_base: Path) -> None:
    """On other layers and of other ranks; only the one that is trained gets gradients."""
    models = []
    for lean in (True, False):
        torch.manual_seed(3)
        base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
        made = LoraConfig(**LORA, init_lora_weights=False)
        model: Any = get_peft_model(make_lean(base), lean_lora(made)) if lean else get_peft_model(base, made)
        other = {**LORA, "r": 5, "target_modules": ["v_proj", "o_proj", "down_proj"], "init_lora_weights": False}
        model.add_adapter("other", LoraConfig(**other))
        model.base_model.set_adapter(["other", "default"])
        for name, weight in model.named_parameters():
            weight.requires_grad_("default" in name)
        models.append(model)
    ids = torch.randint(4, 200, (1, 12))
    lean, plain = (model(input_ids=ids, labels=ids) for model in models)
    torch.testing.assert_close(lean.logits, plain.logits, atol=1e-4, rtol=1e-4)
    for result in (lean, plain):
        result.loss.backward()
    ours, theirs = ([w.grad for w in model.parameters() if w.requires_grad] for model in models)
    assert len(ours) == len(theirs) > 0
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-3)
