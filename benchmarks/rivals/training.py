"""TRL's trainer on the steps of a plan, in an environment and a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.rivals.environment import ROOT, python_of, variables
from benchmarks.rivals.trl_worker import Planned
from benchmarks.train import as_row

if TYPE_CHECKING:
    from alpaca.training.plan import Plan


def run_trl(plan: Plan) -> dict[str, float]:
    """Seconds, tokens, peak memory and held-out loss, as the benchmark's other contenders give them."""
    from alpaca.training.preflight import resolve_targets

    config, examples = plan.config, plan.examples
    targets = list(resolve_targets(plan.base, config.lora_target_modules))
    planned = Planned(
        base=str(plan.base.resolve()), rows=[as_row(examples[i]) for step in plan.steps for i in step.examples],
        held_out=[as_row(example) for example in plan.validation.examples], step=config.batch_size,
        rank=config.lora_r, alpha=int(config.lora_alpha), targets=targets,
        learning_rate=plan.learning_rate[0], warmup=plan.warmup_steps, seed=config.seed, work=config.output_dir,
    )  # fmt: skip
    file = Path(config.output_dir) / "plan.json"
    file.write_text(json.dumps(planned), encoding="utf-8")
    command = [python_of("trl"), "-m", "benchmarks.rivals.trl_worker", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=variables())
    if done.returncode:
        sys.exit(f"TRL failed:\n{done.stderr[-3000:]}")
    measured: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured
