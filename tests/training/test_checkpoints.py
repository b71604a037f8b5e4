"""Invariant 2: a run killed at any moment and resumed ends with the adapter of a run that was never killed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alpaca.data.split import EXACT, NEAR
from alpaca.errors import BadCheckpoint
from alpaca.training.checkpoints import checkpoints_in, split_rule
from alpaca.training.config import FinetuneConfig
from tests.conftest import ROOT, all_but_long
from tests.training.runs import (
    adapter_bytes,
    environment,
    kill_at,
    leftovers,
    make_rows,
    settings,
    train,
    tree,
    write_rows,
)

MEASURED = {"tokens_per_second", "memory", "memory_now"}  # of the machine, not of the run
# A large rank makes saving take long enough to be met in the middle.
LONG: dict[str, Any] = {"num_epochs": 3, "lora_r": 128, "learning_rate": 1e-3}


def saving(part: str) -> Callable[[Path], bool]:
    """The moment at which `part` is there in a half-written checkpoint."""
    return lambda output: any(True for _ in output.glob(f".saving-checkpoint-*/{part}"))


def there(name: str) -> Callable[[Path], bool]:
    return lambda output: (output / name).exists()


def logged(config: FinetuneConfig) -> list[dict[str, Any]]:
    """What the last checkpoint's log says of each step, times and memory left out."""
    last = checkpoints_in(Path(config.output_dir))[-1]
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return [{k: v for k, v in entry.items() if k not in MEASURED} for entry in history]


@pytest.fixture(scope="module")
def whole(tiny_base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> FinetuneConfig:
    """A run that was never killed: 15 steps, a checkpoint at every second."""
    config = settings(tiny_base, rows, tmp_path_factory.mktemp("whole") / "out", **LONG)
    train(config)
    return config


MOMENTS: dict[str, tuple[Callable[[Path], bool], bool]] = {
    "before the first checkpoint": (lambda output: output.is_dir(), False),
    "a save has begun": (saving(""), True),
    "the weights are half there": (saving("checkpoint-*/adapter_model.safetensors"), True),
    "the optimizer is half there": (saving("checkpoint-*/optimizer.pt"), True),
    "a checkpoint was just renamed": (there("checkpoint-4"), False),
    "the adapter is half written": (there(".saving-adapter"), False),
    "the adapter is half in place": (there("adapter_config.json"), False),
}  # fmt: skip


@pytest.mark.parametrize("moment", all_but_long(MOMENTS, "a save has begun", "the adapter is half in place"))
def test_killed_and_resumed_ends_with_the_same_bytes(
    moment: str, whole: FinetuneConfig, tiny_base: Path, rows: Path, tmp_path: Path
) -> None:
    is_now, in_a_save = MOMENTS[moment]
    for attempt in range(6):
        config = settings(tiny_base, rows, tmp_path / f"out{attempt}", **LONG, resume_from_checkpoint="auto")
        killed = kill_at(config, is_now) == -signal.SIGKILL
        if killed and (not in_a_save or list(Path(config.output_dir).glob(".saving-checkpoint-*"))):
            break
    else:
        pytest.fail("the run was never caught at this moment")
    train(config)
    output = Path(config.output_dir)
    assert adapter_bytes(output) == adapter_bytes(Path(whole.output_dir))
    assert logged(config) == logged(whole)
    assert leftovers(output) == []
    assert (output / "alpaca.json").is_file()


@pytest.mark.long
def test_killed_twice_with_dropout(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    """Dropout draws from the random state, which must continue where it was."""
    changes = LONG | {"lora_dropout": 0.2}
    config = settings(tiny_base, rows, tmp_path / "out", **changes, resume_from_checkpoint="auto")
    assert kill_at(config, there("checkpoint-4")) == -signal.SIGKILL
    assert kill_at(config, there("checkpoint-10")) == -signal.SIGKILL
    train(config)
    unbroken = settings(tiny_base, rows, tmp_path / "whole", **changes)
    train(unbroken)
    assert adapter_bytes(tmp_path / "out") == adapter_bytes(tmp_path / "whole")
    assert logged(config) == logged(unbroken)


@pytest.mark.long
def test_the_patience_of_early_stopping_survives(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    """At this learning rate the loss soon gets worse, and four evaluations later the run stops."""
    changes = LONG | {"learning_rate": 0.5, "eval_steps": 1, "early_stopping_patience": 4, "val_set_size": 8}
    unbroken = settings(tiny_base, rows, tmp_path / "whole", **changes)
    train(unbroken)
    stopped = int(checkpoints_in(tmp_path / "whole")[-1].name.split("-")[1])
    assert 5 <= stopped < 12  # of 12 steps
    config = settings(tiny_base, rows, tmp_path / "out", **changes, resume_from_checkpoint="auto")
    assert kill_at(config, there(f"checkpoint-{stopped - 2}")) == -signal.SIGKILL
    assert checkpoints_in(tmp_path / "out")[-1].name != f"checkpoint-{stopped}"
    train(config)
    assert logged(config) == logged(unbroken)
    assert adapter_bytes(tmp_path / "out") == adapter_bytes(tmp_path / "whole")


@pytest.mark.long
def test_the_command_killed_and_resumed(tiny_base: Path, rows: Path, tmp_path: Path, whole: FinetuneConfig) -> None:
    """The same through python finetune.py, with an explicit checkpoint and half-written ones of several kinds."""
    output = tmp_path / "out"
    options = settings(tiny_base, rows, output, **LONG)
    names = ("base_model", "data_path", "output_dir", "quantization", "num_epochs", "batch_size", "lora_r",
             "lora_alpha", "learning_rate", "val_set_size", "eval_steps", "replay_ratio", "report_budget")  # fmt: skip
    arguments = [f"--{name}={getattr(options, name)}" for name in names]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "finetune.py"), *arguments], stdout=subprocess.DEVNULL, env=environment()
    )
    while process.poll() is None and not (output / "checkpoint-4").exists():
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    for name in ("checkpoint-6", "checkpoint-99"):
        half = output / f".saving-{name}" / name
        half.mkdir(parents=True, exist_ok=True)
        (half / "adapter_model.safetensors").write_bytes(b"\x10")
    (output / ".saving-adapter").mkdir(exist_ok=True)
    train(settings(tiny_base, rows, output, **LONG, resume_from_checkpoint=str(output / "checkpoint-4")))
    assert adapter_bytes(output) == adapter_bytes(Path(whole.output_dir))
    assert leftovers(output) == []


# --- what a run is resumed from ------------------------------------------------------------------------------------
@pytest.fixture
def finished(whole: FinetuneConfig, tmp_path: Path) -> Path:
    """A copy of the whole run's folder."""
    return Path(shutil.copytree(whole.output_dir, tmp_path / "out"))


def test_auto_is_a_fresh_start_where_there_is_no_checkpoint(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    lines = train(settings(tiny_base, rows, tmp_path / "out", resume_from_checkpoint="auto"))
    assert not any("resuming" in line for line in lines)


def test_resuming_a_finished_run_writes_the_same_adapter(
    tiny_base: Path, rows: Path, finished: Path, whole: FinetuneConfig
) -> None:
    lines = train(settings(tiny_base, rows, finished, **LONG, resume_from_checkpoint="auto"))
    assert f"resuming from {finished / 'checkpoint-15'}" in lines
    assert adapter_bytes(finished) == adapter_bytes(Path(whole.output_dir))
    assert not (finished.parent / "out.1").exists()


def test_an_earlier_checkpoint_by_name_is_gone_on_from(
    tiny_base: Path, rows: Path, finished: Path, whole: FinetuneConfig
) -> None:
    earlier = checkpoints_in(finished)[0]
    train(settings(tiny_base, rows, finished, **LONG, resume_from_checkpoint=str(earlier)))
    assert adapter_bytes(finished) == adapter_bytes(Path(whole.output_dir))


def test_a_checkpoint_of_another_folder_is_gone_on_from_and_nothing_there_is_touched(
    tiny_base: Path, rows: Path, finished: Path, whole: FinetuneConfig, tmp_path: Path
) -> None:
    """The folder was renamed since, so that the best checkpoint is not where it was; and the new one holds a run."""
    elsewhere = finished.rename(tmp_path / "elsewhere")
    for path in checkpoints_in(elsewhere):
        state = json.loads((path / "trainer_state.json").read_text())
        state["best_model_checkpoint"] = str(tmp_path / "gone" / Path(state["best_model_checkpoint"]).name)
        (path / "trainer_state.json").write_text(json.dumps(state))
    before = tree(elsewhere)
    other = settings(tiny_base, rows, tmp_path / "out", seed=1)
    train(other)
    earlier_run = tree(tmp_path / "out")
    last = checkpoints_in(elsewhere)[-1]
    train(settings(tiny_base, rows, tmp_path / "out", **LONG, resume_from_checkpoint=str(last)))
    assert adapter_bytes(tmp_path / "out") == adapter_bytes(Path(whole.output_dir))
    assert tree(elsewhere) == before
    assert tree(tmp_path / "out.1") == earlier_run


@pytest.mark.parametrize("lacking", ["optimizer.pt", "scheduler.pt", "trainer_state.json", "run.json", "rng_state.pth"])
@pytest.mark.parametrize("by_name", [True, False])
def test_a_checkpoint_that_lacks_a_part_is_refused(
    tiny_base: Path, rows: Path, finished: Path, lacking: str, by_name: bool
) -> None:
    last = checkpoints_in(finished)[-1]
    (last / lacking).unlink()
    before = tree(finished)
    asked = str(last) if by_name else "auto"
    with pytest.raises(BadCheckpoint, match=f"E5002 .*checkpoint-15 lacks {lacking}") as refused:
        train(settings(tiny_base, rows, finished, **LONG, resume_from_checkpoint=asked))
    assert "can't be resumed exactly" in str(refused.value)
    assert tree(finished) == before


def test_a_folder_that_is_no_checkpoint_is_refused_with_those_there_are(
    tiny_base: Path, rows: Path, finished: Path
) -> None:
    with pytest.raises(BadCheckpoint, match=r"Checkpoints in .*: checkpoint-14, checkpoint-15") as refused:
        train(settings(tiny_base, rows, finished, **LONG, resume_from_checkpoint="checkpoint-3"))
    assert "checkpoint-3 lacks" in str(refused.value)


@pytest.mark.parametrize("damage", ["", "{", "[]", "null"])
def test_a_damaged_note_of_the_run_is_refused(tiny_base: Path, rows: Path, finished: Path, damage: str) -> None:
    (checkpoints_in(finished)[-1] / "run.json").write_text(damage)
    with pytest.raises(BadCheckpoint, match=r"run\.json"):
        train(settings(tiny_base, rows, finished, **LONG, resume_from_checkpoint="auto"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learning_rate": 2e-3}, "learning_rate: 0.001 then, 0.002 now"),
        ({"seed": 43}, "seed: 42 then, 43 now"),
        ({"lora_r": 8}, "lora_r: 128 then, 8 now"),
        ({"batch_size": 8, "num_epochs": 4}, "num_epochs: 3 then, 4 now; batch_size: 4 then, 8 now"),
        ({"prompt_template_name": "alpaca"}, "template: "),
        ({"cutoff_len": 512}, "cutoff_len: 1024 then, 512 now"),
        ({"val_set_size": 3}, "val_set_size: 4 then, 3 now"),
        ({"quantization": "bf16"}, 'quantization: "fp32" then, "bf16" now'),
    ],
    ids=str,
)
def test_other_settings_are_refused_and_listed(
    tiny_base: Path, rows: Path, finished: Path, changes: dict[str, Any], said: str
) -> None:
    before = tree(finished)
    with pytest.raises(BadCheckpoint, match="is from another run") as refused:
        train(settings(tiny_base, rows, finished, **(LONG | changes), resume_from_checkpoint="auto"))
    assert said in str(refused.value)
    assert tree(finished) == before


def test_other_data_and_another_base_are_refused(
    tiny_base: Path, tiny_mha_base: Path, rows: Path, finished: Path, tmp_path: Path
) -> None:
    changed = make_rows(24)
    changed[5]["output"] += " again"
    data = write_rows(tmp_path / "changed.jsonl", changed)
    for base, path, said in ((tiny_base, data, "data: "), (tiny_mha_base, rows, "base: ")):
        with pytest.raises(BadCheckpoint, match=f"is from another run .*{said}"):
            train(settings(base, path, finished, **LONG, resume_from_checkpoint="auto"))


def test_what_has_no_part_in_the_result_may_change(tiny_base: Path, rows: Path, finished: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copy(rows, tmp_path / "moved.jsonl"))
    train(settings(tiny_base, moved, finished, **LONG, resume_from_checkpoint="auto"))


# --- an earlier run's folder --------------------------------------------------------------------------------------
def test_an_earlier_run_is_set_aside_whole(tiny_base: Path, rows: Path, finished: Path) -> None:
    before = tree(finished)
    lines = train(settings(tiny_base, rows, finished, val_set_size=0))
    second = tree(finished)
    train(settings(tiny_base, rows, finished, val_set_size=0, seed=1))
    assert tree(finished.with_name("out.1")) == before
    assert tree(finished.with_name("out.2")) == second
    assert f"{finished} held an earlier run: it is now {finished}.1" in lines


def test_files_that_are_no_run_s_stay_where_they_are(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    train(settings(tiny_base, rows, output, val_set_size=0))
    assert (output / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "out.1").exists()


def test_a_checkpoint_from_before_near_copies_were_kept_apart_is_resumed_with_its_own_rows(
    tiny_base: Path, finished: Path, rows: Path
) -> None:
    last = checkpoints_in(finished)[-1]
    run = json.loads((last / "run.json").read_text())
    assert run.pop("split") == NEAR == split_rule("", finished)
    (last / "run.json").write_text(json.dumps(run))
    assert split_rule("auto", finished) == split_rule(str(last), finished) == EXACT
    again = settings(tiny_base, rows, finished, **LONG, resume_from_checkpoint="auto")
    train(again)
    assert json.loads((finished / "alpaca.json").read_text())["settings"]["split"] == EXACT
