"""A run on a GPU has the losses of the same run on the CPU, and what it makes serves."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.training.runs import command, make_rows, settings, train, write_rows

pytestmark = pytest.mark.gpu


def losses(folder: Path) -> list[float]:
    written = json.loads((folder / "report" / "training.json").read_text(encoding="utf-8"))
    return [entry[name] for entry in written["history"] for name in ("loss", "eval_loss") if name in entry]


def run(base: Path, work: Path, name: str, **environment: str) -> list[float]:
    """The losses of finetune.py with the settings that tests use."""
    data = write_rows(work / "rows.jsonl", make_rows(24))
    done = command(
        "--base_model", base, "--data_path", data, "--output_dir", work / name, "--quantization", "fp32",
        "--num_epochs", 2, "--batch_size", 4, "--lora_r", 4, "--learning_rate", 5e-3, "--val_set_size", 4,
        "--eval_steps", 2, "--replay_ratio", 0, "--report_budget", 0, timeout=240, **environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return losses(work / name)


def test_losses_are_those_of_the_cpu(tiny_base: Path, tmp_path: Path) -> None:
    on_gpu = run(tiny_base, tmp_path, "gpu")
    on_cpu = run(tiny_base, tmp_path, "cpu", CUDA_VISIBLE_DEVICES="")
    assert len(on_gpu) == len(on_cpu) > 10
    assert on_gpu == pytest.approx(on_cpu, rel=2e-3)


@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4"])
def test_every_precision_trains(tiny_base: Path, tmp_path: Path, precision: str) -> None:
    data = write_rows(tmp_path / "rows.jsonl", make_rows(24))
    train(settings(tiny_base, data, tmp_path / "out", quantization=precision, num_epochs=4))
    found = losses(tmp_path / "out")
    assert all(map(math.isfinite, found)) and found[-1] < found[0]
