"""The largest micro-batch goes first; it leaves nothing behind, and where memory is too short it says what helps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from alpaca.errors import OutOfMemory
from alpaca.packed.packing import Step
from alpaca.prompts.encode import Encoded
from alpaca.training.fit import build_model, make_trainer
from alpaca.training.memory import explain_memory, is_shortage
from alpaca.training.plan import make_plan
from alpaca.training.preflight import largest_pack
from alpaca.training.trainer import PackedTrainer
from alpaca.training.trial import try_largest
from tests.conftest import ROOT
from tests.training.runs import adapter_bytes, environment, make_rows, settings, train, write_rows


def trainer_for(base: Path, rows: Path, output: Path, **changes: Any) -> PackedTrainer:
    plan = make_plan(settings(base, rows, output, **changes), lambda line: None)
    torch.manual_seed(plan.config.seed)
    return make_trainer(plan, build_model(plan))


def test_the_largest_pack_has_the_most_tokens_and_of_equal_ones_the_longest_example() -> None:
    examples = [Encoded([1] * length, [(0, length)]) for length in (5, 5, 9, 1, 3)]
    steps = [Step((((0, 1), (2,)), ((4,), ())), 0, 0), Step((((2, 3), (4,)), ((3,), ())), 0, 0)]
    assert largest_pack(steps, examples) == (2, 3)
    assert largest_pack(steps, examples, process=1) == (4,)


@pytest.mark.parametrize(
    "changes",
    [{"lora_dropout": 0.2}, {"use_dora": True}, {"gradient_checkpointing": True}, {"quantization": "nf4"}],
    ids=str,
)
def test_a_run_with_the_trial_is_bit_for_bit_the_run_without(
    tiny_base: Path, rows: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    train(settings(tiny_base, rows, tmp_path / "with", **changes))
    without = trainer_for(tiny_base, rows, tmp_path / "without", **changes)
    without.train()
    without._save(str(tmp_path / "without"))
    assert adapter_bytes(tmp_path / "with") == adapter_bytes(tmp_path / "without")


def test_it_runs_the_largest_pack_forward_and_backward_and_leaves_nothing(
    tiny_base: Path, rows: Path, tmp_path: Path
) -> None:
    trainer = trainer_for(tiny_base, rows, tmp_path / "out", lora_dropout=0.2, micro_batch_tokens=64, cutoff_len=64)
    steps: Any = trainer.train_dataset
    seen: list[tuple[list[int], bool]] = []
    gradients: list[str] = []
    trainer.packed.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((kwargs["bounds"], module.training)), with_kwargs=True
    )
    for name, weight in trainer.packed.named_parameters():
        if weight.requires_grad:
            weight.register_post_accumulate_grad_hook(lambda weight, name=name: gradients.append(name))
    trainer.packed.eval()
    before, random = trainer.trained_state(), torch.get_rng_state()
    lines: list[str] = []
    try_largest(trainer, steps, lines.append)
    largest = max(sum(len(trainer.examples[i]) for i in pack) for step in steps for pack in step.packs[0])
    assert [(bounds[-1], training) for bounds, training in seen] == [(largest, True)]
    assert len(gradients) == len(before)
    assert f"{largest} tokens" in lines[0] and "GB at the peak" in lines[1]
    assert torch.equal(torch.get_rng_state(), random) and not trainer.packed.training
    assert all(weight.grad is None for weight in trainer.packed.parameters())
    assert trainer.optimizer is None and trainer.state.global_step == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.trained_state().items())


SHORT_OF_MEMORY = """
import os, re, resource, sys
from pathlib import Path
from alpaca.errors import exit_on_error
from alpaca.training import fit, trial
from alpaca.training.run import finetune
from tests.training.runs import settings

largest = trial.try_largest
def in_little_memory(*arguments):
    used = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20), used + (16 << 20)))
    largest(*arguments)
fit.try_largest = in_little_memory

@exit_on_error
def main():
    one_pack = {"batch_size": 400, "micro_batch_tokens": 100_000, "val_set_size": 0, "num_epochs": 1}
    finetune(settings(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), **one_pack), print)
main()
"""


def test_a_run_that_memory_is_too_short_for_ends_before_its_first_step_with_what_helps(
    tiny_base: Path, tmp_path: Path
) -> None:
    """The process is allowed 16 megabytes more than it has when the trial begins."""
    rows = write_rows(tmp_path / "rows.jsonl", make_rows(400))
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY, str(tiny_base), str(rows), str(tmp_path / "out")],
        capture_output=True, text=True, timeout=180, env=environment(), cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and "step    1/" not in done.stdout
    assert "error: E5005 OutOfMemory: out of memory in a micro-batch of " in done.stderr
    for flag in ("--micro_batch_tokens", "--cutoff_len", "--gradient_checkpointing", "--quantization nf4"):
        assert flag in done.stderr
    assert not list((tmp_path / "out").iterdir())


def test_a_real_refusal_of_memory_is_told_from_other_errors() -> None:
    with pytest.raises(OutOfMemory, match=r"^E5005 .*of 7 tokens"), explain_memory(7, "Less"):
        torch.empty(1 << 60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as other, explain_memory(7, "Less"):
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not is_shortage(other.value) and is_shortage(torch.OutOfMemoryError("CUDA out of memory"))
