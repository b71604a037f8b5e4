"""python finetune.py as people run it: every option works, and what is wrong is refused before anything is touched."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alpaca.adapter.card import read_card
from alpaca.errors import AlpacaError
from tests.training.runs import adapter_bytes, command, leftovers, make_rows, settings, train, tree, write_rows


def history(folder: Path) -> list[float]:
    log = json.loads((folder / "report" / "training.json").read_text())["history"]
    return [entry["loss"] for entry in log if "loss" in entry]


# --- options ------------------------------------------------------------------------------------------------------
OPTIONS: list[dict[str, Any]] = [
    {"quantization": "bf16"}, {"quantization": "int8"}, {"use_dora": True}, {"use_rslora": True},
    {"lora_target_modules": ["q_proj", "v_proj"], "learning_rate": 3e-2}, {"lora_dropout": 0.1},
    {"train_on_inputs": True}, {"val_set_size": 0}, {"learning_rate": None},
    {"quantization": "nf4", "gradient_checkpointing": True, "use_dora": True},
]  # fmt: skip
MORE: list[dict[str, Any]] = [
    {"quantization": "nf4"}, {"quantization": "auto"}, {"gradient_checkpointing": True}, {"val_set_size": 2000},
    {"val_set_size": 0.2}, {"warmup_ratio": 0.5}, {"micro_batch_size": 1}, {"prompt_template_name": "alpaca"},
    {"num_epochs": 0.001, "val_set_size": 0},
]  # fmt: skip


@pytest.mark.parametrize("changes", [*OPTIONS, *(pytest.param(more, marks=pytest.mark.long) for more in MORE)], ids=str)
def test_it_learns_with_every_option(tiny_base: Path, rows: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    out = tmp_path / "out"
    lines = train(settings(tiny_base, rows, out, **({"num_epochs": 4, "eval_steps": 100} | changes)))
    losses = history(out)
    if len(losses) > 1:
        assert losses[-1] < 0.98 * losses[0]
    card = read_card(out)
    assert card is not None
    if changes.get("val_set_size") != 0:
        assert card.losses["validation_after"] < card.losses["validation_before"]
        assert any("before, " in line and "held-out rows" in line for line in lines)
    else:
        assert card.losses["validation_before"] is None
    held = {0: 0, 2000: 12, 0.2: 5}.get(changes.get("val_set_size", -1), 4)
    assert card.data["validation"] == held
    assert leftovers(out) == []


def test_training_on_inputs_trains_more_tokens(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    from alpaca.training.plan import make_plan

    labels = [
        sum(
            step.labels
            for step in make_plan(settings(tiny_base, rows, tmp_path, train_on_inputs=on), lambda s: None).steps
        )
        for on in (True, False)
    ]
    assert labels[0] > 2 * labels[1]


def test_flags_that_have_no_effect_any_more_say_so(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    config = settings(tiny_base, rows, tmp_path / "out", group_by_length=True, add_eos_token=False, dry_run=True)
    said = "\n".join(train(config))
    assert "--group_by_length has no effect: packing leaves no padding to save" in said
    assert "--add_eos_token False has no effect" in said


def test_tensorboard_gets_the_losses(
    tiny_base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    train(settings(tiny_base, rows, tmp_path / "out", report_to="tensorboard"))
    assert list((tmp_path / "logs").rglob("events.out.*"))


# --- invariant 7: refused before work begins ----------------------------------------------------------------------
def bad_rows(folder: Path) -> dict[str, Any]:
    rows: list[Any] = make_rows(6)
    rows[1] = {"instruction": "no output"}
    rows[4] = {"instruction": 5, "output": "x"}
    return {"data_path": str(write_rows(folder / "bad.jsonl", rows))}


def empty(folder: Path) -> dict[str, Any]:
    return {"data_path": str(write_rows(folder / "empty.jsonl", []))}


def missing_package(folder: Path) -> dict[str, Any]:
    name = next((name for name in ("wandb", "tensorboard") if importlib.util.find_spec(name) is None), None)
    if name is None:
        pytest.skip("both reporters are installed")
    return {"report_to": name}


def a_file_in_the_way(folder: Path) -> dict[str, Any]:
    (folder / "file").write_text("mine")
    return {"output_dir": str(folder / "file")}


def under_a_file(folder: Path) -> dict[str, Any]:
    (folder / "file").write_text("mine")
    return {"output_dir": str(folder / "file" / "deeper" / "out")}


FAULTS: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "bad rows": (bad_rows, r"E2002 BadRows: .*2 of 6 rows can't be used:\n.*row 2.*\n.*row 5"),
    "no rows": (empty, "E2003 NoRowsLeft: .*holds no rows"),
    "no file": (lambda folder: {"data_path": "nowhere.json"}, "E2001 DataNotFound: nowhere.json"),
    "no base": (lambda folder: {"base_model": "nowhere"}, "E3001 BaseNotFound: no base 'nowhere'"),
    "no template": (lambda folder: {"prompt_template_name": "alpacca"}, "E2101 TemplateNotFound: .*alpacca"),
    "no layer": (lambda folder: {"lora_target_modules": ["c_attn"]}, "E5001 .*has no layer 'c_attn'. It has down_proj"),
    "no package": (missing_package, "E5001 BadSetting: report_to .* not installed"),
    "too long": (lambda folder: {"cutoff_len": 8}, "E2003 .*fits in cutoff_len 8"),
    "no checkpoint": (lambda folder: {"resume_from_checkpoint": "checkpoint-9"}, "E5002 .*checkpoint-9 lacks"),
    "output is a file": (a_file_in_the_way, "E5001 BadSetting: output_dir .*file"),
    "output under a file": (under_a_file, "E5001 BadSetting: output_dir .*file"),
}  # fmt: skip


@pytest.fixture(scope="module")
def earlier(tiny_base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("earlier") / "out"
    train(settings(tiny_base, rows, out))
    return out


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_is_refused_and_what_is_there_stays(
    tiny_base: Path, rows: Path, tmp_path: Path, earlier: Path, fault: str
) -> None:
    make, said = FAULTS[fault]
    changes = make(tmp_path)
    before, around, files = tree(earlier), sorted(earlier.parent.iterdir()), sorted(tmp_path.rglob("*"))
    with pytest.raises(AlpacaError, match=f"(?s)^{said}"):
        train(settings(tiny_base, rows, **({"output": earlier} | changes)))
    assert tree(earlier) == before
    assert sorted(earlier.parent.iterdir()) == around
    assert sorted(tmp_path.rglob("*")) == files


def assert_refused(done: Any, said: str) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0], done.stderr


def test_the_command_refuses_a_bad_setting_and_a_bad_file_in_one_line(
    tiny_base: Path, tmp_path: Path, earlier: Path
) -> None:
    before = tree(earlier)
    (tmp_path / "c.yaml").write_text("learnin_rate: 1\n")
    done = command("--config", tmp_path / "c.yaml", "--output_dir", earlier)
    assert_refused(done, "E5001 BadSetting: ")
    assert "did you mean learning_rate?" in done.stderr
    done = command("--base_model", tiny_base, "--output_dir", earlier, DATA_PATH=str(tmp_path / "nowhere.json"))
    assert_refused(done, "E2001 DataNotFound: ")
    assert tree(earlier) == before


def test_the_command_trains_with_alpaca_lora_s_options(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    """Its whole command line, but for wandb; the tutorial's variables; what is printed."""
    out = tmp_path / "out"
    options = f"""--base_model {tiny_base} --output_dir {out} --batch_size 8 --num_epochs 2 --learning_rate 3e-3
        --cutoff_len 256 --val_set_size 2000 --lora_r 8 --lora_alpha 16 --lora_dropout 0.05
        --lora_target_modules [q_proj,v_proj] --train_on_inputs --add_eos_token False --group_by_length
        --prompt_template_name alpaca --seed 7 --quantization fp32 --replay_ratio 0 --report_budget 0""".split()
    done = command(*options, DATA_PATH=str(rows), MICRO_BATCH_SIZE="4")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr
    card = read_card(out)
    assert card is not None
    wanted = {"lora_r": 8, "micro_batch_size": 4, "lora_target_modules": ["q_proj", "v_proj"], "train_on_inputs": True}
    assert wanted.items() <= card.settings.items()
    assert card.template["name"] == "alpaca"
    for said in ("val_set_size 2000, but that is over half of 24 rows, so 12", "step    1/4  epoch 0.50  loss ",
                 " tok/s  ", "verified    8 tensors read back equal, 4 of 4 modules changed, logits equal",
                 "held-out rows", f"done        {out} in 0:"):  # fmt: skip
        assert said in done.stdout, said
    again = tmp_path / "again"  # the same through Python gives the same bytes
    train(settings(
        tiny_base, rows, again, batch_size=8, learning_rate=3e-3, cutoff_len=256, val_set_size=2000, lora_r=8,
        lora_alpha=16, lora_dropout=0.05, lora_target_modules=["q_proj", "v_proj"], train_on_inputs=True,
        prompt_template_name="alpaca", seed=7, micro_batch_size=4, eval_steps=None,
    ))  # fmt: skip
    assert adapter_bytes(again) == adapter_bytes(out)
