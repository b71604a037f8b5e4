"""What adapters add to the weights, against PEFT's own merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from alpaca.errors import ExportRefused
from tests.export.conftest import Export, of


def merged_by_peft(base: Path, adapter: Path, scale: float = 1.0) -> dict[str, torch.Tensor]:
    from peft import PeftModel

    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    for module in model.modules():
        if scale != 1 and hasattr(module, "lora_A"):
            module.scale_layer(scale)
    return {name: tensor for name, tensor in model.merge_and_unload().state_dict().items() if name != "lm_head.weight"}


@pytest.mark.parametrize("kind", ["a", "b", "dora", "patterns", "rslora"])
def test_every_kind_of_adapter_is_merged_as_peft_merges_it(tiny_base: Path, adapters: Path, kind: str) -> None:
    weights = of(tiny_base, adapters / kind).weights
    expected = merged_by_peft(tiny_base, adapters / kind)
    assert weights.entries.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(weights.tensor(name), tensor, rtol=1e-5, atol=1e-5)


def test_a_strength_scales_the_change(tiny_base: Path, adapters: Path) -> None:
    weights = of(tiny_base, f"{adapters / 'a'}:0.5", 0.5).weights
    for name, tensor in merged_by_peft(tiny_base, adapters / "a", 0.25).items():
        torch.testing.assert_close(weights.tensor(name), tensor, rtol=1e-5, atol=1e-5)


def test_several_adapters_add_up(tiny_base: Path, adapters: Path) -> None:
    base = load_file(tiny_base / "model.safetensors")
    weights = of(tiny_base, f"{adapters / 'a'}:0.7+{adapters / 'rslora'}:0.5").weights
    first, second = merged_by_peft(tiny_base, adapters / "a"), merged_by_peft(tiny_base, adapters / "rslora")
    for name, own in base.items():
        expected = own + 0.7 * (first[name] - own) + 0.5 * (second[name] - own)
        torch.testing.assert_close(weights.tensor(name), expected, rtol=1e-4, atol=1e-4)


def test_without_an_adapter_the_weights_are_the_bases(tiny_mha_base: Path) -> None:
    weights = of(tiny_mha_base).weights
    for name, tensor in load_file(tiny_mha_base / "model.safetensors").items():
        assert torch.equal(weights.tensor(name), tensor)


def test_dora_has_one_strength_and_stands_alone(tiny_base: Path, adapters: Path) -> None:
    with pytest.raises(ExportRefused, match="strength"):
        of(tiny_base, f"{adapters / 'dora'}:0.5")
    both = of(tiny_base, f"{adapters / 'dora'}:1+{adapters / 'a'}:1")
    with pytest.raises(ExportRefused, match="alone"):
        _ = both.weights


def test_a_merged_folder_is_whole_in_every_dtype(out: Export, adapters: Path, tiny_base: Path) -> None:
    from transformers import AutoTokenizer

    folder, proofs = out("merged", adapters / "carded", dtype="bf16")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == 2
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert asked.startswith("Below is an instruction") and asked.endswith("### Response:\n")
    (check,) = proofs[0].checks
    assert check["good"] and check["share"] >= 0.98
    assert (tiny_base / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_large_models_are_cut_into_shards(tiny_base: Path, adapters: Path, tmp_path: Path) -> None:
    from alpaca.export.hf_folder import write_folder

    model = of(tiny_base, adapters / "a")
    write_folder(model, tmp_path, "fp32", shard=100_000)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 2 and files[0].startswith("model-00001-of-")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name in model.weights.entries:
        assert torch.equal(loaded.state_dict()[name], model.weights.tensor(name))
