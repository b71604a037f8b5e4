"""How a run is kept from forgetting: as asked, or as the base suggests, each with its reason. What each way gains and
forgets is in docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alpaca.errors import BadSetting
from alpaca.progress import is_sharded
from alpaca.prompts.example import Example
from alpaca.training.config import FinetuneConfig
from alpaca.training.served import unserved

RATIO = 0.1
KL = 10.0  # what a unit of divergence on replayed answers counts beside a unit of loss on the data's
TUNED, NOT_TUNED = "the base has a chat template", "the base has no chat template"


def choose_ratio(config: FinetuneConfig, tuned: bool) -> tuple[float, str]:
    """The share of replay rows. `tuned`: the base has a chat template."""
    if config.replay_ratio is not None:
        return config.replay_ratio, "as asked"
    if tuned:
        return RATIO, f"{TUNED}, so it is tuned to instructions already and could forget them"
    return 0.0, f"{NOT_TUNED}, so it is not tuned to instructions yet"


def choose_kl(config: FinetuneConfig, tuned: bool) -> tuple[float, str]:
    """What a unit of divergence from the base on replayed answers counts; 0 where they are trained on like the data."""
    if config.replay_kl is not None:
        return config.replay_kl, "as asked"
    if config.finetuning_type == "full":
        return 0.0, "all weights are trained: no base is left to teach"
    if tuned:
        return KL, f"{TUNED}: what it says to general questions is to stay, token by token"
    return 0.0, f"{NOT_TUNED}, so it learns from general rows as well"


def choose_self(config: FinetuneConfig, tuned: bool, base: Path, rows: Sequence[Example]) -> tuple[bool, str]:
    """Whether the base answers `rows`, those that may be replayed, itself. Raises BadSetting where it was asked to and
    can't."""
    refused = unserved(base)
    if config.replay_self and refused:
        raise BadSetting(f"replay_self needs the base's own answers, but {refused}. Leave --replay_self out")
    if config.replay_self is not None:
        return config.replay_self, "as asked"
    if not tuned:
        return False, NOT_TUNED
    if not choose_kl(config, tuned)[0]:
        return False, "replay_kl is 0"
    if is_sharded():
        return False, "the base is sharded over the processes, and one alone may not hold it"
    if refused:
        return False, refused
    if all(row.raw for row in rows):
        return False, "the rows for replay are plain text, without questions"
    return True, f"{TUNED}: its own answers are what it would lose first"
