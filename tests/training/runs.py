"""Tiny fine-tunes for the tests of training: rows, settings, and processes that can be killed."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from alpaca.training.config import FinetuneConfig
from alpaca.training.lock import LOCK
from tests.conftest import ROOT

# What the libraries import late; imported once, in the process that the others are forked from.
LIBRARIES = [
    "transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto", "transformers.optimization",
    "transformers.models.auto.tokenization_auto", "transformers.integrations.integration_utils", "peft.tuners.lora",
    "accelerate", "torch._dynamo",
]  # fmt: skip
WORDS = ["the", "alpaca", "eats", "hay", "and", "grass", "in", "the", "field", "with", "the", "herd"]


def make_rows(count: int) -> list[dict[str, str]]:
    """Distinct rows of varied length, every third with an input."""
    return [
        {
            "instruction": f"task {number} {WORDS[number % len(WORDS)]}",
            "input": f"field {number}" if number % 3 == 0 else "",
            "output": " ".join(WORDS[(number + word) % len(WORDS)] for word in range(1 + number % 7)),
        }
        for number in range(1, count + 1)
    ]


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def settings(base: Path, data: Path, output: Path, **changes: Any) -> FinetuneConfig:
    """A run of a few steps in fp32."""
    given: dict[str, Any] = {
        "base_model": str(base), "data_path": str(data), "output_dir": str(output), "quantization": "fp32",
        "num_epochs": 2, "batch_size": 4, "lora_r": 4, "lora_alpha": 8, "learning_rate": 5e-3, "val_set_size": 4,
        "eval_steps": 2, "replay_ratio": 0, "replay_self": False, "report_budget": 0,
    }  # fmt: skip
    return FinetuneConfig(**(given | changes))


def train(config: FinetuneConfig) -> list[str]:
    """Run the fine-tune and return the lines it says (the progress of steps goes to stdout)."""
    from alpaca.training.run import finetune

    lines: list[str] = []
    finetune(config, lines.append)
    return lines


def adapter_bytes(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under `folder` with its content, but for the lock, which says who has it and when."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LOCK)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def leftovers(folder: Path) -> list[str]:
    """What a run must not leave behind: hidden names, in the output folder and beside it."""
    return sorted(p.name for f in (folder, folder.parent) if f.is_dir() for p in f.iterdir() if p.name.startswith("."))


# --- a process that can be killed ---------------------------------------------------------------------------------
def _train_unheard(config: FinetuneConfig) -> None:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        train(config)


def kill_at(config: FinetuneConfig, moment: Callable[[Path], bool]) -> int | None:
    """Fine-tune in a process of its own and SIGKILL it when `moment(output folder)` is true; its exit code (-9)."""
    context = multiprocessing.get_context("forkserver")  # a fork of a process that has the libraries and no threads
    context.set_forkserver_preload(["tests.training.runs", "alpaca.training.fit", *LIBRARIES])
    process = context.Process(target=_train_unheard, args=(config,), daemon=True)
    process.start()
    deadline = time.monotonic() + 120
    while process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.0005)
        if moment(Path(config.output_dir)):
            process.kill()
            break
    process.join(60)
    return process.exitcode


# --- the command --------------------------------------------------------------------------------------------------
def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("BASE_MODEL", "DATA_PATH", "MICRO_BATCH_SIZE")}
    return kept | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | more


def command(*arguments: object, timeout: float = 180, **env: str) -> subprocess.CompletedProcess[str]:
    """python finetune.py with `arguments`."""
    return subprocess.run(
        [sys.executable, str(ROOT / "finetune.py"), *map(str, arguments)],
        capture_output=True, text=True, timeout=timeout, env=environment(**env), cwd=ROOT,
    )  # fmt: skip
