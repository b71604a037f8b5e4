"""Several processes train the model that one does, and one of them writes and prints."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alpaca.adapter.card import read_card
from alpaca.adapter.folder import verify_files
from tests.conftest import ROOT
from tests.training.runs import environment, leftovers, make_rows, settings, train, write_rows

# Nine rows in steps of four: the last step of each epoch is one example, fewer than there are processes.
CHANGES: dict[str, Any] = {"batch_size": 4, "num_epochs": 2, "val_set_size": 3, "learning_rate": 1e-3, "eval_steps": 3,
                           "replay_ratio": 0.2, "replay_self": True, "report_budget": 0}  # fmt: skip
TORCHRUN = ("torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--rdzv_backend=c10d",
            "--rdzv_endpoint=localhost:0")  # fmt: skip
SHARDED = ("accelerate.commands.launch", f"--config_file={ROOT / 'deploy' / 'fsdp2.yaml'}", "--num_machines=1",
           "--num_processes=2", "--main_process_port=0")  # fmt: skip
ON_CPU = str(ROOT / "tests" / "training" / "fsdp_on_cpu.py")  # as finetune.py, but accelerate shards there, too


@pytest.fixture(scope="module")
def alone(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(rows, output folder) of one process."""
    folder = tmp_path_factory.mktemp("distributed")
    data = write_rows(folder / "rows.jsonl", make_rows(12))
    train(settings(tiny_base, data, folder / "alone", **CHANGES))
    return data, folder / "alone"


def arguments(base: Path, data: Path, output: Path, **more: Any) -> list[str]:
    config = settings(base, data, output, **(CHANGES | more))
    names = {"base_model", "data_path", "output_dir", "quantization", "lora_r", "lora_alpha", *CHANGES, *more}
    return [str(ROOT / "finetune.py"), *(f"--{name}={getattr(config, name)}" for name in names)]


def launch(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, timeout=300, env=environment(), cwd=ROOT
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return done.stdout


def assert_same_adapter(output: Path, wanted: Path, base: Path) -> None:
    got, expected = (load_file(str(folder / "adapter_model.safetensors")) for folder in (output, wanted))
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, atol=1e-4, rtol=0, msg=partial("{}: {}".format, name))
    verify_files(output, base)
    card, before = read_card(output), read_card(wanted)
    assert card is not None and before is not None
    assert card.losses["validation_after"] == pytest.approx(before.losses["validation_after"], abs=1e-3)
    assert leftovers(output) == []


def test_two_processes_train_what_one_does(tiny_base: Path, alone: tuple[Path, Path], tmp_path: Path) -> None:
    data, wanted = alone
    output = tmp_path / "two"
    said = launch(*TORCHRUN, *arguments(tiny_base, data, output))
    assert_same_adapter(output, wanted, tiny_base)
    steps = ("step    1/6", "step    6/6  epoch")
    answers = "answers of the base are replayed"  # process 0 has them for all
    for line in ("processes   ", "data        ", answers, *steps, "verified    ", "done        "):
        assert said.count(line) == 1, line
    assert "6 of 4 examples over 2 processes" in said
    assert {path.name for path in output.iterdir()} == {path.name for path in wanted.iterdir()}


@pytest.mark.long
def test_two_processes_that_share_the_base_by_fsdp2_train_what_one_does(
    tiny_base: Path, alone: tuple[Path, Path], tmp_path: Path
) -> None:
    data, wanted = alone
    said = launch(*SHARDED, ON_CPU, *arguments(tiny_base, data, tmp_path / "shared")[1:])
    assert_same_adapter(tmp_path / "shared", wanted, tiny_base)
    card, before = read_card(tmp_path / "shared"), read_card(wanted)
    assert card is not None and before is not None
    assert card.losses["validation_before"] == pytest.approx(before.losses["validation_before"], abs=1e-3)
    assert said.count("step    6/6  epoch") == said.count("step    0/6  validation loss") == 1


def test_processes_tell_each_other_what_they_have_and_refuse_what_differs(tmp_path: Path) -> None:
    said = launch(*TORCHRUN, str(ROOT / "tests" / "training" / "meeting.py"), str(tmp_path))
    assert "both agree" in said


@pytest.mark.long
def test_two_processes_train_all_weights_as_one_does(tiny_base: Path, alone: tuple[Path, Path], tmp_path: Path) -> None:
    data, _ = alone
    full: dict[str, Any] = {"finetuning_type": "full", "lora_r": 16, "lora_alpha": 32}
    train(settings(tiny_base, data, tmp_path / "one", **CHANGES, **full))
    said = launch(*TORCHRUN, *arguments(tiny_base, data, tmp_path / "two", **full))
    got, wanted = (load_file(str(tmp_path / name / "model.safetensors")) for name in ("two", "one"))
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)
    assert said.count("20 tensors read back equal, 20 of them changed, logits equal") == 1


@pytest.mark.long
def test_two_processes_that_share_all_weights_by_fsdp2_train_them_as_one_does(
    tiny_base: Path, alone: tuple[Path, Path], tmp_path: Path
) -> None:
    data, _ = alone
    full: dict[str, Any] = {"finetuning_type": "full", "lora_r": 16, "lora_alpha": 32}
    train(settings(tiny_base, data, tmp_path / "one", **CHANGES, **full))
    said = launch(*SHARDED, ON_CPU, *arguments(tiny_base, data, tmp_path / "shared", **full)[1:])
    got, wanted = (load_file(str(tmp_path / name / "model.safetensors")) for name in ("shared", "one"))
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)
    assert said.count("20 tensors read back equal, 20 of them changed") == 1


@pytest.mark.long
@pytest.mark.parametrize(("kind", "gradients"), [("lora", 28), ("full", 20)])
def test_a_sharded_model_has_the_losses_and_gradients_of_a_whole_one(
    tiny_base: Path, tmp_path: Path, kind: str, gradients: int
) -> None:
    """What FSDP needs of the model where the base teaches one process's rows and none of the other's."""
    data = write_rows(tmp_path / "rows.jsonl", make_rows(12))
    said = launch(*TORCHRUN, str(ROOT / "tests" / "training" / "sharded.py"), str(tiny_base), str(data), kind)
    assert f"{gradients} gradients equal" in said
