"""A configuration that transformers can't use is refused with its reason, in training and in serving."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from alpaca.base.load import load_model
from alpaca.base.skeleton import model_config, skeleton
from alpaca.errors import BadBase
from tests.base.shapes import shaped_base


@pytest.fixture
def copy(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "copy"))


def edit(folder: Path, **fields: Any) -> Path:
    """Change fields of config.json; None takes one out."""
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


def test_it_has_the_models_modules_and_takes_no_memory(tiny_base: Path) -> None:
    made, model = skeleton(tiny_base), load_model(tiny_base, "fp32", torch.device("cpu"))
    shapes = {name: weight.shape for name, weight in made.named_parameters()}
    assert shapes == {name: weight.shape for name, weight in model.named_parameters()}
    assert all(weight.is_meta for weight in made.parameters())


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"model_type": "alien"}, "model type `alien`"),
        ({"model_type": None}, "`model_type` key"),
        ({"hidden_size": "64"}, "'hidden_size' expected int"),
        ({"num_attention_heads": 0}, "by zero"),
        ({"rope_parameters": {"rope_type": "su", "rope_theta": 10_000.0}}, "KeyError: 'su'"),
        ({"hidden_act": "unheard_of"}, "unheard_of"),
    ],
    ids=str,
)
def test_what_transformers_stumbles_over_is_said(copy: Path, fields: dict[str, Any], says: str) -> None:
    edit(copy, **fields)
    with pytest.raises(BadBase, match=rf"E3003 .* can't be loaded: transformers can't .* its config.json: .*({says})"):
        skeleton(copy)
    with pytest.raises(BadBase, match="E3003"):
        load_model(copy, "fp32", torch.device("cpu"))


def test_fields_that_are_not_written_have_transformers_defaults(tmp_path: Path) -> None:
    """Some releases leave out what is as their class has it."""
    base = edit(shaped_base(tmp_path / "base", "Llama", num_key_value_heads=4), num_key_value_heads=None)
    assert model_config(base).num_key_value_heads == 4
