"""Markers whose rows were never trained are told in the plan, from the rows themselves."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from alpaca.base.load import load_tokenizer
from alpaca.prompts.find import load_template
from alpaca.training.plan import make_plan
from alpaca.training.untrained import untrained_markers
from tests.prompts.chat_templates import SHAPES
from tests.training.runs import settings

LLAMA_3 = SHAPES["Llama 3 base"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return LLAMA_3.make_base(tmp_path_factory.mktemp("bases") / "trained")


def faint(base: Path, folder: Path, tensor: str, *tokens: str, dtype: torch.dtype = torch.float32) -> Path:
    """A copy of the base in which the tokens' rows of one matrix are a hundredth of what they were."""
    shutil.copytree(base, folder)
    weights = {name: value.to(dtype) for name, value in load_file(base / "model.safetensors").items()}
    weights[tensor][LLAMA_3.tokenizer().convert_tokens_to_ids(list(tokens))] *= 0.01
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def found(base: Path, template: str = "chat") -> list[str]:
    tokenizer = load_tokenizer(base)
    return untrained_markers(base, tokenizer, load_template(template, tokenizer))


def test_a_base_that_knows_its_markers_gets_no_warning(trained: Path) -> None:
    assert found(trained) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tensor", ["model.embed_tokens.weight", "lm_head.weight"])
def test_a_faint_row_in_either_matrix_gives_a_marker_away(
    trained: Path, tmp_path: Path, tensor: str, dtype: torch.dtype
) -> None:
    base = faint(trained, tmp_path / "faint", tensor, "<|eot_id|>", "<|start_header_id|>", dtype=dtype)
    assert found(base) == ["<|start_header_id|>", "<|eot_id|>"]
    assert found(base, "alpaca") == []


def test_the_plan_says_what_it_means_and_what_helps(trained: Path, rows: Path, tmp_path: Path) -> None:
    base = faint(trained, tmp_path / "faint", "lm_head.weight", "<|eot_id|>")
    said: list[str] = []
    make_plan(settings(base, rows, tmp_path / "out"), said.append)
    [warning] = [line for line in said if "untrained" in line]
    assert warning.startswith("warning     <|eot_id|> of the template chat looks untrained in this base")
    assert "may never learn where to stop" in warning and "--prompt_template_name alpaca" in warning


@pytest.mark.real
def test_the_real_base_gets_no_warning(smollm2: Path) -> None:
    assert found(smollm2) == []
