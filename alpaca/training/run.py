"""A fine-tune from settings to a verified adapter folder; a dry run stops before anything heavy is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpaca.training.config import FinetuneConfig
from alpaca.training.plan import make_plan, show_examples
from alpaca.training.screen import Say, say_on_main

if TYPE_CHECKING:
    from alpaca.training.result import Finetuned


def finetune(config: FinetuneConfig, say: Say = say_on_main) -> Finetuned | None:
    """Run a fine-tune and return where the adapter is and what it came to; None after a dry run. Raises AlpacaError."""
    plan = make_plan(config, say)
    if config.dry_run:
        show_examples(plan, say)
        say("\ndry run: nothing was trained")
        return None
    from alpaca.training.fit import train

    return train(plan, say)
