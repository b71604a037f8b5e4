"""Adapters rewritten for tools that read less of a configuration: PEFT, given the new files, computes the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from alpaca.errors import BadSetting, ExportRefused
from alpaca.export.portable import portable
from alpaca.export.vllm_folder import RANKS
from tests.export.conftest import Export, of
from tests.serving.peft_adapters import make_adapter

IDS = torch.tensor([[1, 40, 77, 130, 256, 300, 12, 5]])


def logits(base: Path, *adapters: tuple[Path, float]) -> torch.Tensor:
    """Of the base with adapters at strengths, by PEFT."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for number, (folder, _) in enumerate(adapters):
        name = f"a{number}"
        model = model.load_adapter(folder, name) and model if number else PeftModel.from_pretrained(model, folder, name)
    model.base_model.set_adapter([f"a{number}" for number in range(len(adapters))])
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name in module.scaling:
                module.scaling[name] *= adapters[int(name[1:])][1]
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("kind", ["a", "b", "patterns", "rslora"])
def test_every_kind_becomes_plain_lora(tiny_base: Path, adapters: Path, tmp_path: Path, kind: str) -> None:
    written = portable(of(tiny_base, f"{adapters / kind}:0.5").strengths)
    written.save(tmp_path / "plain", "some/base")
    config = json.loads((tmp_path / "plain" / "adapter_config.json").read_text())
    assert not config["use_rslora"] and not config["rank_pattern"] and not config["alpha_pattern"]
    assert config["base_model_name_or_path"] == "some/base"
    expected = logits(tiny_base, (adapters / kind, 0.5))
    torch.testing.assert_close(logits(tiny_base, (tmp_path / "plain", 1.0)), expected, rtol=1e-3, atol=1e-3)


def test_several_become_one_of_their_ranks_together(tiny_base: Path, adapters: Path, tmp_path: Path) -> None:
    used = of(tiny_base, f"{adapters / 'a'}:0.7+{adapters / 'b'}:0.5").strengths
    written = portable(used)
    assert written.rank == 16  # a has 4 and b has 16, on other layers
    written.save(tmp_path / "both", "some/base")
    expected = logits(tiny_base, (adapters / "a", 0.7), (adapters / "b", 0.5))
    torch.testing.assert_close(logits(tiny_base, (tmp_path / "both", 1.0)), expected, rtol=1e-3, atol=1e-3)


def test_dora_is_refused_and_merging_named(tiny_base: Path, adapters: Path) -> None:
    with pytest.raises(ExportRefused, match="export `merged`"):
        portable(of(tiny_base, adapters / "dora").strengths)


def test_a_folder_for_vllm_holds_what_serve_sh_names(tiny_base: Path, adapters: Path, out: Export) -> None:
    folder, proofs = out(
        "vllm", adapters / "rslora", adapters / "b", serve_base="owner/base", gpus=2, adapter_scale=0.5
    )  # fmt: skip
    script = (folder / "serve.sh").read_text()
    assert "base=owner/base\n" in script and "--tensor-parallel-size 2" in script
    assert "--max-lora-rank 16" in script and "--max-loras 2" in script
    for proof in proofs:
        config = json.loads((folder / proof.files["adapter"] / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "owner/base"
        assert config["r"] in RANKS[:3] and f"{proof.name}={proof.files['adapter']}" in script
        assert [check["tool"] for check in proof.checks] == ["transformers with PEFT"]
    rslora = json.loads((folder / proofs[0].files["adapter"] / "adapter_config.json").read_text())
    assert rslora["lora_alpha"] == pytest.approx(16 * 8**0.5 * 0.5)
    assert (folder / "template.jinja").read_text() == of(tiny_base).jinja


@pytest.mark.long
def test_what_serve_sh_starts_is_named_from_where_it_is_called(adapters: Path, out: Export, tmp_path: Path) -> None:
    """`echo` in vLLM's place says what it was given; names with blanks, quotes and dollars arrive as they are."""
    odd = """a "b" $HOME it's"""
    folder, _ = out("vllm", adapters / "a", serve_base=odd)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "tool").symlink_to("/bin/echo")
    (tmp_path / "here" / "base").mkdir()

    def started(**named: str) -> str:
        done = subprocess.run(
            [str(folder / "serve.sh"), "--port", "9"], cwd=tmp_path / "here", env={"PATH": os.environ["PATH"], **named},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout

    assert started(VLLM="echo").startswith(f"serve {odd} --served-model-name") and "--port 9" in started(VLLM="echo")
    assert started(VLLM="./tool", BASE="base").startswith(f"serve {tmp_path / 'here' / 'base'} ")
    assert started(VLLM="./tool", BASE="owner/name").startswith("serve owner/name ")


def test_the_manifests_are_yaml(tiny_base: Path, adapters: Path, out: Export, tmp_path: Path) -> None:
    import yaml

    odd = tmp_path / "Base 1.5: 'x' #1"
    shutil.copytree(tiny_base, odd)
    folder, _ = out("vllm", adapters / "a", base=str(odd))
    kserve, ray = (yaml.safe_load((folder / name).read_text()) for name in ("kserve.yaml", "rayserve.yaml"))
    assert kserve["metadata"]["name"] == "base-1-5-x-1" and kserve["spec"]["model"]["name"] == odd.name
    assert ray["applications"][0]["args"]["llm_configs"][0]["model_loading_config"]["model_id"] == odd.name
    assert kserve["spec"]["model"]["lora"]["adapters"] == [{"name": "a", "uri": "s3://BUCKET/adapters/a"}]
    (config,) = ray["applications"][0]["args"]["llm_configs"]
    assert config["engine_kwargs"]["max_lora_rank"] == 8


def test_what_one_vllm_server_can_not_serve_is_refused(tiny_base: Path, adapters: Path, out: Export) -> None:
    with pytest.raises(ExportRefused, match="a vLLM server has one"):
        out("vllm", adapters / "a", adapters / "carded")
    with pytest.raises(ExportRefused, match="two adapters would be called a"):
        out("vllm", adapters / "a", adapters / "a")
    with pytest.raises(ExportRefused, match="two adapters would be called a"):
        out("gguf-lora", adapters / "a", adapters / "a")
    for none in ([], ["none"], ["none", adapters / "a"]):
        with pytest.raises(BadSetting, match="give --adapter"):
            out("vllm", *none)
    with pytest.raises(BadSetting, match="--adapter is empty"):
        out("merged", "")
    shutil.copytree(adapters / "a", adapters / tiny_base.name)
    with pytest.raises(ExportRefused, match="as the base is"):
        out("vllm", adapters / tiny_base.name)
    make_adapter(tiny_base, adapters / "wide", r=600)
    with pytest.raises(ExportRefused, match="rank 600, and vLLM takes at most 512"):
        out("vllm", adapters / "wide")
