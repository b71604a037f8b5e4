"""The fingerprint: a base is known again whatever wrote its files, another never is, and earlier names count."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from alpaca.adapter.card import Card
from alpaca.adapter.folder import verify_files
from alpaca.base.earlier import earlier_fingerprints, is_known_as
from alpaca.base.forward_config import forward_config
from alpaca.base.headers import fingerprint
from alpaca.errors import BadBase, WrongBase
from tests.base.shapes import shaped_base
from tests.conftest import ROOT
from tests.serving.peft_adapters import make_adapter

MADE_BEFORE = ROOT / "tests" / "made_before"
EARLIER = "8183c4f7438411b6"  # what versions until November 2026 called the base there
LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}  # fmt: skip
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama with scaled rope": ("Llama", {"rope_parameters": LLAMA3_ROPE | {"rope_theta": 500_000.0}}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral with a window": ("Mistral", {"sliding_window": 128}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2 with windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
}
NOTES: dict[str, Any] = {
    "unsloth_fixed": True, "unsloth_version": "2025.1", "pad_token_id": 4, "eos_token_id": [2, 0], "use_cache": False,
    "transformers_version": "4.44.0", "_name_or_path": "/elsewhere", "_attn_implementation_autoset": True,
    "initializer_range": 0.1, "quantization_config": None,
}  # fmt: skip


@pytest.fixture(scope="module", params=SHAPES)
def shape(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind, settings = SHAPES[request.param]
    return shaped_base(tmp_path_factory.mktemp("shapes") / "base", kind, **settings)


def edited(base: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def as_transformers_4_writes(config: dict[str, Any]) -> None:
    """As on the hub: `rope_theta`, here without its fraction, beside `rope_scaling`; `torch_dtype`; no layer_types."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = int(rope.pop("rope_theta"))
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    if "use_sliding_window" in config and not config["use_sliding_window"]:
        config["sliding_window"] = 4096  # version 5 writes null


def without_defaults(config: dict[str, Any]) -> None:
    rope = config["rope_parameters"]
    if rope == {"rope_type": "default", "rope_theta": 10_000.0}:
        del config["rope_parameters"]
    for name, default in {
        "rms_norm_eps": 1e-6, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
        "tie_word_embeddings": False, "use_sliding_window": False, "attention_dropout": 0.0, "pretraining_tp": 1,
    }.items():  # fmt: skip
        if config.get(name, default) == default:
            config.pop(name, None)
    if config["model_type"] in ("llama", "mistral", "qwen2") and config.get("head_dim") == 16:
        config["head_dim"] = None


# --- the same ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "spelling", [as_transformers_4_writes, without_defaults, lambda config: config.update(NOTES)],
    ids=["transformers 4", "defaults left out", "a mirror's notes"],
)  # fmt: skip
def test_the_same_weights_are_the_same_base_whatever_wrote_the_configuration(
    shape: Path, tmp_path: Path, spelling: Callable[[dict[str, Any]], object]
) -> None:
    assert fingerprint(edited(shape, tmp_path / "copy", spelling)) == fingerprint(shape)


def test_what_transformers_computes_does_not_depend_on_the_spelling(shape: Path, tmp_path: Path) -> None:
    """That is what makes them the same base: the library reads both alike."""
    from transformers import AutoModelForCausalLM

    ids = torch.arange(4, 200)[None]
    with torch.no_grad():
        copies = [shape, edited(shape, tmp_path / "4", as_transformers_4_writes)]
        first, second = (AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32)(ids).logits for f in copies)
    torch.testing.assert_close(first, second, atol=0, rtol=0)


def test_tensors_that_are_computed_count_for_nothing(tiny_base: Path, tmp_path: Path) -> None:
    """Checkpoints of 2023 carry the rotary frequencies along."""
    copy = Path(shutil.copytree(tiny_base, tmp_path / "copy"))
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(copy) == fingerprint(tiny_base)


# --- another -------------------------------------------------------------------------------------------------------
OTHERS: dict[str, dict[str, Any]] = {
    "heads": {"num_attention_heads": 2, "num_key_value_heads": 1},
    "activation": {"hidden_act": "gelu"},
    "epsilon": {"rms_norm_eps": 1e-5},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 9_999.0}},
    "theta in the older spelling": {"rope_parameters": None, "rope_theta": 500_000},
    "rope scaling": {"rope_parameters": LLAMA3_ROPE | {"rope_theta": 10_000.0}},
    "family": {"model_type": "mistral", "sliding_window": None},
}


@pytest.mark.parametrize("field", OTHERS)
def test_what_the_forward_pass_reads_makes_another_base(tiny_base: Path, tmp_path: Path, field: str) -> None:
    other = edited(tiny_base, tmp_path / "other", lambda config: config.update(OTHERS[field]))
    assert fingerprint(other) != fingerprint(tiny_base)


def test_a_window_that_slides_makes_another_base(tmp_path: Path) -> None:
    base = shaped_base(tmp_path / "qwen", "Qwen2", use_sliding_window=True, sliding_window=64, max_window_layers=1)
    every = edited(base, tmp_path / "every", lambda config: config.update(layer_types=["sliding_attention"] * 2))
    none = edited(base, tmp_path / "none", lambda config: config.update(use_sliding_window=False))
    assert len({fingerprint(folder) for folder in (base, every, none)}) == 3


def test_rope_that_depends_on_the_positions_reads_how_many_there_are() -> None:
    config = {"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2}, "max_position_embeddings": 2048}
    assert forward_config(config) != forward_config(config | {"max_position_embeddings": 4096})
    plain = {"model_type": "llama", "max_position_embeddings": 2048}
    assert forward_config(plain) == forward_config(plain | {"max_position_embeddings": 4096})


def test_of_a_family_that_is_not_known_everything_counts_but_ids_and_notes() -> None:
    gemma = {"model_type": "gemma2", "final_logit_softcapping": 30.0, "bos_token_id": 1, "torch_dtype": "float16"}
    assert forward_config(gemma) == forward_config(gemma | {"bos_token_id": 2, "torch_dtype": None, "_name": "x"})
    assert forward_config(gemma) != forward_config(gemma | {"final_logit_softcapping": 50.0})


@pytest.mark.parametrize(
    "config",
    [{"rope_scaling": "linear"}, {"num_attention_heads": 0}, {"num_hidden_layers": "two"}, {"head_dim": [1], "x": 1}],
    ids=str,
)
def test_sizes_that_cannot_be_right_are_refused(config: dict[str, Any]) -> None:
    kind = {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 0}
    try:
        forward_config(kind | config)
    except BadBase as refused:
        assert "config.json has sizes or rotary settings that can't be right" in str(refused)
    else:
        assert config == {"head_dim": [1], "x": 1}  # the model's own class refuses that


# --- earlier versions ----------------------------------------------------------------------------------------------
def test_an_earlier_version_s_fingerprint_is_still_known() -> None:
    base = MADE_BEFORE / "base"
    assert earlier_fingerprints(base) == (EARLIER,)
    assert is_known_as(base, EARLIER) and is_known_as(base, fingerprint(base)) and not is_known_as(base, "0" * 16)


def test_an_earlier_adapter_fits_its_base_in_the_other_spelling_too(tmp_path: Path) -> None:
    copy = edited(MADE_BEFORE / "base", tmp_path / "copy", as_transformers_4_writes)
    card = verify_files(MADE_BEFORE / "adapter", copy).card
    assert card is not None and card.base_fingerprint == EARLIER


def test_an_earlier_adapter_of_another_base_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    folder = make_adapter(tiny_base, tmp_path / "adapter")
    Card("base", EARLIER, {}, {}).write(folder)
    with pytest.raises(WrongBase, match=EARLIER):
        verify_files(folder, tiny_base)


def test_a_base_that_was_hashed_with_its_second_copy_is_known_by_that_too(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(MADE_BEFORE / "base", tmp_path / "copy"))
    save_file({"tok_embeddings.weight": torch.ones(2, 2)}, copy / "consolidated.safetensors")
    assert fingerprint(copy) == fingerprint(MADE_BEFORE / "base")
    assert EARLIER in earlier_fingerprints(copy) and len(earlier_fingerprints(copy)) == 2
