"""What a fine-tune made, beside the base it came from: an adapter on it, or a model with weights of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from alpaca.adapter.card import Card
from alpaca.base.load import load_model
from alpaca.evaluation.answers import Asked, Question
from alpaca.evaluation.losses import Scored
from alpaca.prompts.template import Template
from alpaca.serving.engine import Engine
from alpaca.serving.limits import EngineLimits
from alpaca.serving.loading import LoadedBase, open_engine

Ask = Callable[[Sequence[Question], Callable[[int], object]], list[Asked]]
"""Asks both of them the questions; is told whom to tell of each answer."""


@dataclass(frozen=True)
class Held:
    """How the base is held, and what both are asked in."""

    base: Path
    precision: str
    device: torch.device
    tokenizer: Any
    template: Template


class Tuned(Protocol):
    """The saved result, checked against the base. Scale 0 is the base alone, 1 what was made of it."""

    noun: str
    """What it is called: adapter or model."""
    flop: float
    """What training it took for each weight of the layers' matrices and token."""

    @property
    def folder(self) -> Path: ...

    @property
    def card(self) -> Card | None: ...

    @property
    def unscaled(self) -> str:
        """Why there is nothing between the base and it, a sentence; "" where there is."""

    @property
    def columns(self) -> int:
        """Those that the engine needs for it; 0 for a model."""

    def count(self) -> int:
        """How many numbers were trained."""

    def settings(self) -> dict[str, Any]:
        """What its files say of how it was made, beside its card."""

    def asking(self, held: Held, limits: EngineLimits) -> AbstractContextManager[Ask]:
        """Both of them ready to answer, in memory together or in turn. Raises BadAdapter and BadBase where the engine
        can't."""

    def scoring(self, held: Held) -> Scored:
        """Both of them ready to be measured."""


def open_on(folder: Path, held: Held, limits: EngineLimits) -> Engine:
    """An engine for the model in `folder`, held as the base is."""
    model = load_model(folder, held.precision, held.device)
    return open_engine(LoadedBase(folder, model, held.tokenizer), limits=limits, say=lambda line: None)
