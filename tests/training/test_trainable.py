"""No base is trained whose adapter could not be used afterwards: it is refused before rows are read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from alpaca.errors import BadBase
from alpaca.training.trainable import check_trainable
from tests.base.shapes import shaped_base
from tests.training.runs import settings, train

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def edit(folder: Path, **fields: int) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def without_prefix(folder: Path) -> None:
    """As transformers saves a model without its head."""
    weights = load_file(folder / "model.safetensors")
    save_file({name.removeprefix("model."): weight for name, weight in weights.items()}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda folder: edit(folder, num_hidden_layers=1),
            "has 7 matrices, model.layers.1.mlp.down_proj for one, which the model",
        ),
        (
            lambda folder: edit(folder, num_hidden_layers=3),
            "lacks 7 of the matrices .* model.layers.2.mlp.down_proj for one",
        ),
        (lambda folder: edit(folder, intermediate_size=96), r"has shape \(.*\), its config.json says \(.*96.*\)"),
        (without_prefix, "no layers that can be adapted: its weights have other names .*embed_tokens.weight for one"),
    ],
    ids=["more layers than it says", "fewer layers", "other sizes", "names without a prefix"],
)
def test_weights_and_configuration_must_be_of_one_release(
    tiny_base: Path, rows: Path, tmp_path: Path, change: Callable[[Path], None], says: str
) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    change(base)
    with pytest.raises(BadBase, match=f"E3003 .*{says}"):
        train(settings(base, rows, tmp_path / "out", dry_run=True))


def test_joined_experts_are_refused_and_the_attention_beside_them_is_not(tmp_path: Path) -> None:
    """transformers makes one parameter of all experts' matrices, which PEFT adapts in a way that is not served."""
    sizes = {"num_local_experts": 4, "num_experts_per_tok": 2}
    base = shaped_base(tmp_path / "base", "Mixtral", **sizes)
    with pytest.raises(BadBase, match=r"experts may be joined into one.*--lora_target_modules q_proj,k_proj,v_proj"):
        check_trainable(base, ["all-linear"])
    check_trainable(base, ATTENTION)


def test_a_head_that_is_more_than_a_product_is_refused_before_training(tmp_path: Path, rows: Path) -> None:
    base = shaped_base(tmp_path / "base", "Gemma2", head_dim=16)
    with pytest.raises(BadBase, match="changes its logits"):
        train(settings(base, rows, tmp_path / "out", dry_run=True))


@pytest.mark.parametrize("field", ["intermediate_size", "vocab_size"])
def test_the_estimate_needs_no_field_that_a_configuration_may_leave_out(tmp_path: Path, rows: Path, field: str) -> None:
    """What is missing has the value of its class."""
    tokenizer_sized = {"intermediate_size": 11008} if field == "intermediate_size" else {"vocab_size": 32000}
    base = shaped_base(tmp_path / "base", "Llama", num_hidden_layers=1, **tokenizer_sized)
    config = json.loads((base / "config.json").read_text())
    del config[field]
    (base / "config.json").write_text(json.dumps(config))
    said = train(settings(base, rows, tmp_path / "out", dry_run=True))
    assert any(line.startswith("estimate") for line in said)
