"""A model all of whose weights were tuned, and the base it came from: two models, one in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alpaca.adapter.card import Card, read_card
from alpaca.adapter.folder import ASIDE
from alpaca.base.check import check_base
from alpaca.base.earlier import is_known_as
from alpaca.base.headers import count_weights, fingerprint
from alpaca.device import release_memory
from alpaca.errors import AdapterChanged, PromptTooLong, WrongBase
from alpaca.evaluation.answers import BASE, TUNED, Asked, Question, joined, request
from alpaca.evaluation.tuned import Ask, Held, open_on
from alpaca.packed.scoring import ScoringModel, open_base
from alpaca.serving.engine import Engine
from alpaca.serving.limits import EngineLimits
from alpaca.serving.together import Answer, answers


@dataclass(frozen=True)
class TunedModel:
    """The model in `folder`, tuned from a base that is at hand."""

    folder: Path
    card: Card

    noun = "model"
    flop = 6.0
    unscaled = "All weights were trained: between the base and this model there is no strength to choose."
    columns = 0

    @classmethod
    def of(cls, folder: Path, base: Path) -> TunedModel:
        """The model, checked against the base that its card names. Raises BadBase, BadAdapter and WrongBase."""
        check_base(folder)
        card = read_card(folder)
        if card is None or (folder / ASIDE).is_dir():
            raise AdapterChanged(f"{folder} is being replaced, or was when a training was killed; ask for it again")
        known = fingerprint(base)
        if card.base_fingerprint != known and not is_known_as(base, card.base_fingerprint):
            raise WrongBase(
                f"{folder} was tuned from {card.base_model} (fingerprint {card.base_fingerprint}); this base is "
                f"{base.name} (fingerprint {known}). Name the one it came from: --base_model"
            )
        return cls(folder, card)

    def count(self) -> int:
        return count_weights(self.folder)

    def settings(self) -> dict[str, Any]:
        return {}

    @contextmanager
    def asking(self, held: Held, limits: EngineLimits) -> Iterator[Ask]:
        both = _Engines({BASE: held.base, TUNED: self.folder}, held, limits)
        try:
            yield both.ask
        finally:
            both.close()

    def scoring(self, held: Held) -> TwoModels:
        return TwoModels({0.0: held.base, 1.0: self.folder}, held.precision, held.device)


class TwoModels:
    """Two models to be measured. The one that was asked for last stays in memory."""

    def __init__(self, folders: dict[float, Path], precision: str, device: torch.device) -> None:
        self._folders, self._precision, self._device = folders, precision, device
        self._loaded: tuple[float, ScoringModel] | None = None

    @contextmanager
    def at(self, scale: float) -> Iterator[ScoringModel]:
        """The base (0) or the tuned model (1)."""
        if self._loaded is None or self._loaded[0] != scale:
            self._loaded = None
            release_memory(self._device)
            self._loaded = scale, open_base(self._folders[scale], self._precision, self._device)
        yield self._loaded[1]


class _Engines:
    """An engine for each of the two, one in memory at a time."""

    def __init__(self, folders: dict[float, Path], held: Held, limits: EngineLimits) -> None:
        self._folders, self._held, self._limits = folders, held, limits
        self._open: tuple[float, Engine] | None = None

    def ask(self, questions: Sequence[Question], done: Callable[[int], object]) -> list[Asked]:
        """Both the same questions, beginning with the one that is in memory."""
        first = self._open[0] if self._open else BASE
        found = {scale: self._answers(scale, questions, done) for scale in sorted((BASE, TUNED), key=first.__ne__)}
        return joined(questions, found[BASE], found[TUNED])

    def _answers(self, scale: float, questions: Sequence[Question], done: Callable[[int], object]) -> list[Answer]:
        if self._open is None or self._open[0] != scale:
            self.close()
            self._open = scale, open_on(self._folders[scale], self._held, self._limits)
        requests = [request(question, prompt_template=self._held.template) for question in questions]
        return answers(self._open[1], requests, done=done, unanswered=(PromptTooLong,))

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None
            release_memory(self._held.device)
