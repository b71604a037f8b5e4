"""Invariant 6: the adapter that was saved gives, reloaded or merged, the logits that were trained."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from alpaca.adapter.archive import pack, unpack
from alpaca.adapter.card import read_card
from alpaca.adapter.folder import ASIDE, load_adapter, verify_files
from alpaca.base.headers import fingerprint
from alpaca.base.load import load_model, load_tokenizer
from alpaca.errors import AdapterError, VerificationFailed
from alpaca.prompts.find import template_from_card
from alpaca.serving.adapters import content_digest
from alpaca.training.fit import build_model, make_trainer
from alpaca.training.plan import Plan, make_plan
from alpaca.training.result import Outcome, put_in_place, verify, write_result
from alpaca.training.trainer import PackedTrainer
from tests.serving.peft_adapters import make_adapter
from tests.training.runs import leftovers, settings, train

CPU = torch.device("cpu")
IDS = torch.arange(5, 45)[None]


def trained(base: Path, rows: Path, output: Path, **changes: Any) -> tuple[Plan, PackedTrainer]:
    plan = make_plan(
        settings(base, rows, output, **({"val_set_size": 0, "eval_steps": 100} | changes)), lambda line: None
    )
    trainer = make_trainer(plan, build_model(plan))
    trainer.train()
    trainer.packed.eval()
    return plan, trainer


def write(plan: Plan, trainer: PackedTrainer) -> list[str]:
    lines: list[str] = []
    write_result(plan, trainer, Outcome(None, None, 1, [], 0.0, 0), lines.append)
    return lines


def off(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, in terms of the largest logit."""
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


# In bf16, the lean layers and PEFT's add in another order. int8 rounds what comes in, so that small differences grow;
# nf4 has another matrix product for inference on some processors.
TOLERANCE = {"fp32": 1e-5, "bf16": 0.03, "int8": 0.08, "nf4": 0.08}


@pytest.mark.parametrize("precision", TOLERANCE)
@torch.no_grad()
def test_reloaded_it_gives_the_logits_it_had(tiny_base: Path, rows: Path, tmp_path: Path, precision: str) -> None:
    out = tmp_path / "out"
    with torch.enable_grad():
        plan, trainer = trained(tiny_base, rows, out, quantization=precision)
    had = trainer.packed.peft(input_ids=IDS).logits.float()
    write(plan, trainer)
    bare = load_model(tiny_base, precision, CPU)(input_ids=IDS).logits.float()
    assert off(had, bare) > 0.1
    ours = load_adapter(load_model(tiny_base, precision, CPU), verify_files(out, tiny_base))
    theirs = PeftModel.from_pretrained(load_model(tiny_base, precision, CPU), str(out)).eval()
    for model in (ours, theirs):
        assert off(model(input_ids=IDS).logits.float(), had) < TOLERANCE[precision]
    if precision == "fp32":
        merged = theirs.merge_and_unload()  # type: ignore[operator]
        assert off(merged(input_ids=IDS).logits, had) < 1e-4


@pytest.mark.parametrize(
    "changes", [{"use_dora": True}, {"use_rslora": True, "lora_target_modules": ["q_proj"]}], ids=str
)
@torch.no_grad()
def test_so_does_every_kind_of_adapter(
    tiny_mha_base: Path, rows: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    with torch.enable_grad():
        plan, trainer = trained(tiny_mha_base, rows, out, **changes)
    had = trainer.packed.peft(input_ids=IDS).logits
    write(plan, trainer)
    ours = load_adapter(load_model(tiny_mha_base, "fp32", CPU), verify_files(out, tiny_mha_base))
    theirs: Any = PeftModel.from_pretrained(load_model(tiny_mha_base, "fp32", CPU), str(out)).eval()
    assert off(ours(input_ids=IDS).logits, had) < 1e-5
    assert off(theirs(input_ids=IDS).logits, had) < 1e-5
    assert off(theirs.merge_and_unload()(input_ids=IDS).logits, had) < 1e-4


# --- the folder ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tiny_base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapter") / "out"
    train(settings(tiny_base, rows, out))
    return out


def test_the_folder_is_what_it_should_be(folder: Path) -> None:
    names = {path.name for path in folder.iterdir() if not path.name.startswith("checkpoint-")}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "alpaca.json", "README.md", "report"}
    assert leftovers(folder) == []
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.iterdir() if path.is_file())


def test_the_card_holds_what_serving_and_people_need(folder: Path, tiny_base: Path) -> None:
    card = read_card(folder)
    assert card is not None
    assert (card.base_model, card.base_fingerprint) == ("tiny", fingerprint(tiny_base))
    tokenizer = load_tokenizer(tiny_base)
    assert template_from_card(card.template, tokenizer).name == "chat"
    assert card.special_tokens == {"bos": 1, "eos": 2, "pad": 3, "unk": 0}
    assert (card.data["train"], card.data["validation"], card.data["source"]) == (20, 4, "rows.jsonl")
    assert card.settings["lora_r"] == 4 and card.settings["learning_rate"] == 5e-3 and card.settings["seed"] == 42
    assert card.losses["validation_after"] < card.losses["validation_before"]
    assert {"python", "torch", "transformers", "peft"} <= card.versions.keys()
    assert card.created
    text = json.dumps(card.__dict__)
    assert str(folder.parent) not in text and str(tiny_base.parent) not in text  # no path of this machine


def test_the_configuration_names_the_base_and_no_path(folder: Path, tiny_base: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert config["target_modules"] == sorted(config["target_modules"])
    assert (
        str(tiny_base.parent) not in (folder / "adapter_config.json").read_text() + (folder / "README.md").read_text()
    )


def test_the_report_has_every_step(folder: Path) -> None:
    history = json.loads((folder / "report" / "training.json").read_text())["history"]
    steps = [entry for entry in history if "loss" in entry]
    assert [entry["step"] for entry in steps] == list(range(1, 11))
    assert steps[-1]["loss"] < steps[0]["loss"] and all(entry["tokens_per_second"] > 0 for entry in steps)
    assert (
        sum(entry["tokens"] for entry in steps)
        == json.loads((folder / "alpaca.json").read_text())["data"]["tokens_trained_on"]
    )
    assert all(0 < entry["memory_now"] <= entry["memory"] and entry["learning_rate"] >= 0 for entry in steps)
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [2, 4, 6, 8, 10]
    assert "before" in (folder / "README.md").read_text()


def test_the_best_checkpoint_is_what_is_kept(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    """At this learning rate the loss rises again; the adapter is that of the step where it was lowest."""
    train(settings(tiny_base, rows, tmp_path / "out", learning_rate=0.3, eval_steps=1, num_epochs=4, warmup_ratio=0.5))
    history = json.loads((tmp_path / "out" / "report" / "training.json").read_text())["history"]
    losses = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    best = min(losses, key=lambda step: losses[step])
    card = read_card(tmp_path / "out")
    assert card is not None and card.run["best_step"] == best < max(losses)
    assert card.losses["validation_after"] == pytest.approx(losses[best], abs=1e-5)
    saved = load_file(str(tmp_path / "out" / "adapter_model.safetensors"))
    at_best = load_file(str(tmp_path / "out" / f"checkpoint-{best}" / "adapter_model.safetensors"))
    assert all(torch.equal(tensor, at_best[name]) for name, tensor in saved.items())


def test_packed_and_unpacked_it_still_fits(folder: Path, tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "unpacked").mkdir()
    unpack(pack(folder, tmp_path / "a.zip"), tmp_path / "unpacked")
    files = verify_files(tmp_path / "unpacked", tiny_base)
    assert files.card == read_card(folder) and len(files.modules) == 14


# --- verification -------------------------------------------------------------------------------------------------
def test_training_that_changed_nothing_is_told(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = make_plan(settings(tiny_base, rows, out, val_set_size=0), lambda line: None)
    trainer = make_trainer(plan, build_model(plan))
    with pytest.raises(VerificationFailed, match=r"^E5004 .*every B of the adapter is zero"):
        write(plan, trainer)
    assert not (out / "adapter_config.json").exists()


def test_files_that_are_not_what_was_trained_are_told(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan, trainer = trained(tiny_base, rows, out)
    assert any("logits equal" in line for line in write(plan, trainer))
    state = {name: tensor.clone() for name, tensor in trainer.trained_state().items()}
    name = next(name for name in state if "lora_B" in name)
    with pytest.raises(VerificationFailed, match="was not written as it was trained"):
        verify(plan, trainer, Path(shutil.copytree(out, tmp_path / "copy")), state | {name: state[name] + 1e-6})
    with torch.no_grad():
        next(p for n, p in trainer.packed.named_parameters() if "lora_B" in n).add_(0.5)
    with pytest.raises(VerificationFailed, match="gives other logits"):
        verify(plan, trainer, out, state)


class Killed(BaseException):
    """What ends a process at once."""


@pytest.mark.parametrize("moment", range(5))
@pytest.mark.parametrize("has_card", [True, False], ids=["with a card", "of another tool"])
def test_killed_while_an_adapter_is_replaced_it_is_the_new_one_or_none(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int, has_card: bool
) -> None:
    """Never the configuration of one with the weights of the other, nor one that has lost its template."""
    old = make_adapter(tiny_base, tmp_path / "out", seed=1, template="alpaca" if has_card else None)
    new = make_adapter(tiny_base, tmp_path / "new", seed=2, lora_alpha=800, template="alpaca")
    aside = Path(shutil.copytree(new, old / ASIDE))
    replace, left = os.replace, iter(range(moment))

    def replace_or_die(source: Path, target: Path) -> None:
        if next(left, None) is None:
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_or_die)
    try:
        put_in_place(aside, old)
    except Killed:
        with pytest.raises(AdapterError):
            verify_files(old, tiny_base)
    else:
        verify_files(old, tiny_base)
        assert content_digest(old) == content_digest(new)
