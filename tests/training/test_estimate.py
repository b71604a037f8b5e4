"""The estimate of memory against what real runs of the real base took, each in a process of its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from alpaca.adapter.card import read_card
from tests.conftest import ROOT
from tests.training.runs import command

pytestmark = [pytest.mark.real, pytest.mark.long]


@pytest.mark.parametrize(
    "changes",
    [
        {"quantization": "bf16", "num_epochs": 0.4},
        {"quantization": "fp32", "micro_batch_tokens": 512, "num_epochs": 0.2},
        {"finetuning_type": "full", "micro_batch_tokens": 512, "num_epochs": 0.1, "replay_ratio": 0},
    ],
    ids=str,
)
def test_a_run_takes_the_memory_that_was_estimated(smollm2: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Within 15 %, with several micro-batches, an evaluation and a checkpoint."""
    options = {"base_model": smollm2, "data_path": ROOT / "data" / "alpacas.jsonl", "output_dir": tmp_path / "out",
               "batch_size": 8, "cutoff_len": 512, "val_set_size": 8, "eval_steps": 4, "report_budget": 0}  # fmt: skip
    done = command(*[f"--{name}={value}" for name, value in (options | changes).items()], timeout=900)
    assert done.returncode == 0, done.stderr
    found = re.search(r"estimate    about ([\d.]+) GB at the peak", done.stdout)
    card = read_card(tmp_path / "out")
    assert found and card is not None
    estimated, used = float(found[1]) * 1e9, card.run["peak_memory"]
    assert abs(estimated - used) <= 0.15 * used, f"estimated {estimated / 1e9:.2f} GB, used {used / 1e9:.2f} GB"
