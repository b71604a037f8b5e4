"""What of a base is trained, LoRA adapters or all weights: everything in which a run of one differs from the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from alpaca.base.precision import Choice
from alpaca.errors import VerificationFailed
from alpaca.prompts.template import Template
from alpaca.training.preflight import Cost

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from alpaca.adapter.card import Card
    from alpaca.packed.model import PackedModel


@dataclass(frozen=True)
class Held:
    """How a run holds its base."""

    base: Path
    name: str  # that cards give it
    precision: str
    device: torch.device
    attention: str  # transformers' attn_implementation


class Tuning(Protocol):
    """One way to tune. What it needs of the settings and of the base's headers it has been given when it was made."""

    noun: str
    """What comes out, for people: adapter or model."""
    weights: str
    """The file of a checkpoint that holds what is trained."""
    parts: ClassVar[tuple[str, ...]]
    """Patterns of the result's files, beside its card and its report; where the last one lies, a result is complete."""
    beside_memory: str
    """What to do where memory is too short, a sentence."""
    instead: str
    """The same where no rows at all would fit."""
    smaller: str
    """What makes its files smaller, for the end of a sentence."""

    @property
    def what(self) -> str:
        """What is trained, for the middle of a sentence."""

    def choose_precision(self, asked: str, device: torch.device) -> Choice:
        """How the base is held and computed with. Raises PrecisionUnavailable."""

    def default_rate(self, width: int) -> tuple[float, str]:
        """The peak learning rate for a base `width` wide, and why."""

    def count(self) -> int:
        """How many numbers are trained."""

    def notes(self) -> Iterable[str]:
        """What a person should know before it is trained."""

    def cost(self, precision: str, checkpointing: bool) -> Cost:
        """What it takes in memory and products."""

    def build(self, held: Held, *, taught: bool) -> PackedModel:
        """The base in its lean form, with what is trained open to gradients."""

    def state(self, model: PackedModel, gathered: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """What is trained, on the CPU, by the names in its file. `gathered`: the whole of a sharded model."""

    def names(self, model: PackedModel, trained: Iterable[str]) -> dict[str, str]:
        """The model's own name of each tensor by its name in the file. `trained`: the own names, as a trainer sees
        them."""

    def load(self, model: PackedModel, state: Mapping[str, Tensor]) -> None:
        """Put a state back into the model."""

    def write(self, model: PackedModel, state: Mapping[str, Tensor], folder: Path, tokenizer: Any, held: Held,
              template: Template) -> None:  # fmt: skip
        """Write the result's files but for its card and README.md. `template`: what it is asked in."""

    def verify(self, model: PackedModel, state: Mapping[str, Tensor], folder: Path, held: Held, prompt: list[int], *,
               whole: bool) -> str:  # fmt: skip
        """Read the result in `folder` back: every tensor, that something was learned, and, where the model is `whole`
        (not sharded), the logits of `prompt`. Returns what was found. Raises VerificationFailed."""

    def readme(self, card: Card, said: str) -> str:
        """README.md of the result. `said`: how it was trained and what it came to."""


def check_logits(trained: Tensor, reloaded: Tensor, tolerance: float, what: str) -> float:
    """The largest difference of two sets of logits. Raises VerificationFailed where it is above `tolerance`, a share
    of the largest logit."""
    difference = (reloaded - trained).abs().max().item()
    if not difference <= tolerance * trained.abs().max().item():
        raise VerificationFailed(f"{what} read back gives other logits (by up to {difference:.3g})")
    return difference
