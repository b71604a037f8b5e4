"""All weights trained: the folder that comes out, what it is asked in, and what a run of it is refused for."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from alpaca.adapter.card import read_card
from alpaca.base.check import check_base
from alpaca.base.find import resolve_base
from alpaca.base.headers import fingerprint
from alpaca.base.load import load_tokenizer
from alpaca.data.yardstick import open_yardstick
from alpaca.errors import BadCheckpoint, BadSetting, OutOfMemory, VerificationFailed, WrongBase
from alpaca.evaluation.measure import open_subject
from alpaca.prompts.find import load_template
from alpaca.serving.inputs import request_from_inputs
from alpaca.serving.loading import load_base, open_engine
from alpaca.training.config import FULL_OUTPUT, FinetuneConfig
from alpaca.training.fit import build_model, make_trainer
from alpaca.training.full import FullTuning
from alpaca.training.memory import check_memory
from alpaca.training.plan import make_plan
from alpaca.training.result import verify
from tests.conftest import all_but_long
from tests.training.runs import adapter_bytes, kill_at, leftovers, make_rows, settings, train, tree, write_rows

CPU = torch.device("cpu")
FULL: dict[str, Any] = {"finetuning_type": "full", "lora_r": 16, "lora_alpha": 32, "learning_rate": 1e-3}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(str(folder / "model.safetensors"))


@pytest.fixture(scope="module")
def run(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FinetuneConfig, list[str]]:
    """A run on a base with a chat template, tuned in the template of alpaca-lora, with its report."""
    folder = tmp_path_factory.mktemp("full")
    rows = write_rows(folder / "rows.jsonl", make_rows(24))
    changes: dict[str, Any] = {"prompt_template_name": "alpaca", "replay_ratio": 0.1, "report_budget": 0.05}
    config = settings(tiny_base, rows, folder / "tuned", **(FULL | changes))
    return config, train(config)


@pytest.fixture(scope="module")
def tuned(run: tuple[FinetuneConfig, list[str]]) -> Path:
    return Path(run[0].output_dir)


# --- the result ---------------------------------------------------------------------------------------------------
def test_the_folder_is_a_base_that_any_tool_loads(tuned: Path, tiny_base: Path) -> None:
    check_base(tuned)
    assert resolve_base(str(tuned)) == tuned
    before, after = weights(tiny_base), weights(tuned)
    assert after.keys() == before.keys() and {tensor.dtype for tensor in after.values()} == {torch.float32}
    assert not any(torch.equal(before[name], after[name]) for name in before)
    assert fingerprint(tuned) != fingerprint(tiny_base)
    model = AutoModelForCausalLM.from_pretrained(tuned)
    for name, tensor in model.named_parameters():
        torch.testing.assert_close(tensor, after[name])
    assert leftovers(tuned) == []


def test_the_card_says_what_was_trained_and_from_what(tuned: Path, tiny_base: Path) -> None:
    card = read_card(tuned)
    assert card is not None and card.base_fingerprint == fingerprint(tiny_base)
    assert card.settings["finetuning_type"] == "full" and card.settings["replay_kl"] == 0
    assert card.template == load_template("alpaca").card()
    assert card.losses["validation_after"] < card.losses["validation_before"]
    readme = (tuned / "README.md").read_text()
    assert "all weights tuned" in readme and "lora" not in readme.lower()


def test_every_choice_is_said_with_its_reason(run: tuple[FinetuneConfig, list[str]]) -> None:
    text = "\n".join(run[1])
    for said in (
        "parameters to train: all weights", "checkpoints and the model take up to",
        "replay_kl 0 (all weights are trained: no base is left to teach)", "all of them changed, logits equal",
        "verified    20 tensors read back equal",
    ):  # fmt: skip
        assert said.replace("all of them", "20 of them") in text, said
    assert "warning" not in text


def test_it_is_asked_in_the_template_it_was_tuned_with(tuned: Path) -> None:
    lines: list[str] = []
    engine = open_engine(load_base(str(tuned), "fp32", say=lines.append), say=lines.append)
    request = request_from_inputs(prompt="task 1 alpaca", max_tokens=12, temperature=0)
    try:
        rendered = engine.render(request)
        with engine.submit(request) as stream:
            said = "".join(chunk.text for chunk in stream)
    finally:
        engine.close()
    assert "template: alpaca (the base was trained with it)" in lines
    assert "### Instruction:\ntask 1 alpaca" in rendered.prompt
    tokenizer = AutoTokenizer.from_pretrained(tuned)
    ids = tokenizer(rendered.prompt, return_tensors="pt").input_ids
    model = AutoModelForCausalLM.from_pretrained(tuned)
    made = model.generate(ids, max_new_tokens=12, do_sample=False)[0][ids.shape[1] :]
    assert said == tokenizer.decode(made, skip_special_tokens=True)
    assert open_yardstick(str(tuned), "", 256).template.name == "alpaca"


def test_other_tools_find_that_template_as_the_tokenizer_s_own(tuned: Path) -> None:
    asked = load_tokenizer(tuned).apply_chat_template(
        [{"role": "user", "content": "eat"}], tokenize=False, add_generation_prompt=True
    )
    assert "### Instruction:\neat" in str(asked)


def test_an_adapter_can_be_trained_on_top(tuned: Path, rows: Path, tmp_path: Path) -> None:
    lines = train(settings(tuned, rows, tmp_path / "lora", num_epochs=0.5))
    assert "template    alpaca (the base was trained with it)" in lines
    card = read_card(tmp_path / "lora")
    assert card is not None and card.base_fingerprint == fingerprint(tuned)


def test_in_bf16_the_weights_trained_are_fp32_and_the_ones_written_bf16(
    tiny_mha_base: Path, rows: Path, tmp_path: Path
) -> None:
    train(settings(tiny_mha_base, rows, tmp_path / "out", **FULL, quantization="bf16"))
    assert {tensor.dtype for tensor in weights(tmp_path / "out").values()} == {torch.bfloat16}
    kept = weights(sorted((tmp_path / "out").glob("checkpoint-*"))[0])
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32} and "lm_head.weight" in kept
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_what_was_not_written_as_trained_is_refused(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    plan = make_plan(settings(tiny_base, rows, tmp_path / "out", **FULL), lambda line: None)
    trainer = make_trainer(plan, build_model(plan))
    state = {name: tensor.clone() for name, tensor in trainer.trained_state().items()}
    folder = tmp_path / "aside"
    folder.mkdir()
    plan.tuning.write(trainer.packed, state, folder, plan.tokenizer, plan.held, plan.template)
    with pytest.raises(VerificationFailed, match="no weight differs from the base's"):
        verify(plan, trainer, folder, state)
    state["model.norm.weight"] += 1
    with pytest.raises(VerificationFailed, match=r"model\.norm\.weight was not written as it was trained"):
        verify(plan, trainer, folder, state)


# --- the report ---------------------------------------------------------------------------------------------------
def test_the_report_compares_it_with_the_base_it_came_from(
    run: tuple[FinetuneConfig, list[str]], tuned: Path, tiny_base: Path
) -> None:
    numbers = json.loads((tuned / "report" / "report.json").read_text())
    losses = read_card(tuned).losses  # type: ignore[union-attr]
    assert numbers["domain"]["before"] == pytest.approx(losses["validation_before"], abs=1e-3)
    assert numbers["domain"]["after"] == pytest.approx(losses["validation_after"], abs=1e-3)
    assert numbers["sweep"] is None and numbers["samples"] and numbers["run"]["noun"] == "model"
    assert any(sample["base"] != sample["adapter"] for sample in numbers["samples"])
    page = (tuned / "report" / "index.html").read_text(encoding="utf-8")
    assert "All weights of" in page and "adapter" not in page.lower()


def test_another_base_is_refused_for_the_report(tuned: Path, tiny_mha_base: Path) -> None:
    with pytest.raises(WrongBase, match=r"was tuned from tiny .*this base is tiny-mha"):
        open_subject(tuned, tiny_mha_base, "fp32")


# --- a run that is killed -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("moment", all_but_long(["checkpoint-4", "config.json"], "checkpoint-4"))
def test_killed_and_resumed_ends_with_the_same_bytes(tiny_base: Path, rows: Path, tmp_path: Path, moment: str) -> None:
    wanted = settings(tiny_base, rows, tmp_path / "never", **FULL)
    killed = dataclasses.replace(wanted, output_dir=str(tmp_path / "killed"))
    train(wanted)
    assert kill_at(killed, lambda output: (output / moment).exists()) in (-signal.SIGKILL, 0)
    train(dataclasses.replace(killed, resume_from_checkpoint="auto"))
    assert (tmp_path / "killed" / "model.safetensors").read_bytes() == (
        tmp_path / "never" / "model.safetensors"
    ).read_bytes()
    assert leftovers(tmp_path / "killed") == []


def test_an_adapter_s_checkpoint_is_refused(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    train(settings(tiny_base, rows, tmp_path / "out", num_epochs=0.5))
    with pytest.raises(BadCheckpoint, match='finetuning_type: "lora" then, "full" now'):
        train(settings(tiny_base, rows, tmp_path / "out", **FULL, num_epochs=0.5, resume_from_checkpoint="auto"))


def test_a_model_that_is_there_is_moved_aside_whole(tuned: Path, tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    output = tmp_path / "lora"
    shutil.copytree(tuned, output)
    before = tree(output)
    train(settings(tiny_base, rows, output, num_epochs=0.5))
    assert tree(tmp_path / "lora.1") == before
    assert adapter_bytes(output) and not (output / "config.json").exists()


# --- what is refused ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora_r": 8}, "lora_r is 8: finetuning_type full trains all weights and no adapter"),
        ({"lora_target_modules": ["q_proj"]}, "lora_target_modules is"),
        ({"use_dora": True}, "use_dora is True"),
        ({"quantization": "nf4"}, "quantization is 'nf4': finetuning_type full trains all weights, in bf16 or fp32"),
        ({"replay_kl": 3.0}, r"replay_kl is 3\.0: with finetuning_type full no base is left to teach"),
        ({"finetuning_type": "qlora"}, "finetuning_type is 'qlora': choose lora or full"),
    ],
    ids=str,
)
def test_what_makes_no_sense_together_is_refused_at_once(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadSetting, match=said):
        FinetuneConfig(**({"finetuning_type": "full"} | changes))


def test_its_folder_has_a_name_of_its_own() -> None:
    assert FinetuneConfig(finetuning_type="full").output_dir == FULL_OUTPUT
    assert FinetuneConfig(finetuning_type="full", output_dir="mine").output_dir == "mine"


def test_the_base_s_own_folder_is_no_place_for_the_result(tiny_base: Path, rows: Path) -> None:
    with pytest.raises(BadSetting, match="holds a model that no fine-tune made"):
        train(settings(tiny_base, rows, tiny_base, **FULL))


def test_memory_that_can_t_hold_it_is_refused_with_both_numbers(tiny_base: Path) -> None:
    tuning = FullTuning(tiny_base, FinetuneConfig(finetuning_type="full"))
    held = tuning.cost("fp32", checkpointing=False).held
    assert held == 16 * tuning.count()
    check_memory(held, held, tuning)
    with pytest.raises(OutOfMemory, match=r"alone take 1,529,856 bytes .* and 1,000,000 .*--finetuning_type lora"):
        check_memory(held, 1_000_000, tuning)


def test_the_rate_is_a_tenth_of_lora_s_and_stanford_s_for_a_7b(tiny_base: Path) -> None:
    tuning = FullTuning(tiny_base, FinetuneConfig(finetuning_type="full"))
    assert tuning.default_rate(4096)[0] == pytest.approx(2e-5, rel=0.5)
