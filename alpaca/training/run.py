"""A fine-tune from settings to a verified folder with its report; a dry run stops before anything heavy is
imported."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from alpaca.device import release_memory
from alpaca.errors import AlpacaError
from alpaca.paths import this_python
from alpaca.progress import Say, is_main_process, say_on_main
from alpaca.prompts.encode import plain_preview, preview
from alpaca.training import peers
from alpaca.training.config import FinetuneConfig
from alpaca.training.disk import explain_disk
from alpaca.training.forecast import report_seconds
from alpaca.training.lock import alone_in
from alpaca.training.plan import Plan, make_plan, what_must_be_alike
from alpaca.words import tagged

if TYPE_CHECKING:
    from alpaca.training.result import Finetuned


def finetune(config: FinetuneConfig, say: Say = say_on_main) -> Finetuned | None:
    """Run a fine-tune and return where the result is and what it came to; None after a dry run. Raises AlpacaError."""
    with peers.explain_lost(Path(config.output_dir)):
        return _finetune(config, say)


def _finetune(config: FinetuneConfig, say: Say) -> Finetuned | None:
    peers.meet(say)
    plan = peers.alike(lambda: make_plan(config, say), what_must_be_alike)
    if config.dry_run:
        show_examples(plan, say)
        say("\ndry run: nothing was trained")
        return None
    from alpaca.training.fit import train

    output = Path(config.output_dir)
    with alone_in(output) if is_main_process() else nullcontext():
        with explain_disk(output):
            finetuned = train(plan, say)
        if config.report_budget and is_main_process():
            report(plan, finetuned, say)
    return finetuned


def show_examples(plan: Plan, say: Say, count: int = 3) -> None:
    """Print a few training examples with what is trained and what is masked told apart."""
    if not is_main_process():
        return
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    how = "green is trained, grey is masked" if colour else "what stands in ⟦…⟧ is trained, the rest is masked"
    for number, encoded in enumerate(plan.train.examples[:count], 1):
        say(f"\nexample {number} (row {encoded.row}, {len(encoded)} tokens, {encoded.n_trained} trained; {how}):")
        if colour:
            from rich.console import Console

            Console().print(preview(plan.tokenizer, encoded))
        else:
            say(plain_preview(plan.tokenizer, encoded))


def report(plan: Plan, finetuned: Finetuned, say: Say) -> None:
    """Write the report into the result's folder. Should it fail, the result is finished all the same: it is said."""
    release_memory(plan.device)  # the trainer and its model hold each other
    try:
        from alpaca.evaluation.report import write_report

        write_report(
            finetuned.adapter, plan.base, precision=plan.precision.precision,
            budget_seconds=report_seconds(plan.config.report_budget, finetuned.seconds),
            data_path=plan.config.data_path, say=say,
            beside=[adapter.files.folder for adapter in plan.on_top.frozen] if plan.on_top else (),
        )  # fmt: skip
    except Exception as error:
        if not isinstance(error, AlpacaError):
            traceback.print_exception(error, file=sys.stderr)
        reason = str(error) if isinstance(error, AlpacaError) else f"{type(error).__name__}: {error}"
        say(tagged("warning", f"there is no report: {reason}"))
        again = f"{this_python()} -m alpaca.evaluation --adapter {finetuned.adapter}"
        say(tagged("warning", f"the {plan.tuning.noun} is complete; for a report: {again}"))
