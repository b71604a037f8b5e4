"""An adapter and its base: one model in memory, with the adapter at any strength."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from alpaca.adapter.card import Card
from alpaca.adapter.folder import AdapterFiles, BaseShape
from alpaca.evaluation.answers import ask
from alpaca.evaluation.losses import AdaptedModel, open_model
from alpaca.evaluation.tuned import Ask, Held, open_on
from alpaca.serving.limits import EngineLimits
from alpaca.serving.lora import PAGE


@dataclass(frozen=True)
class TunedAdapter:
    """The saved adapter, whose `files` fit `base`."""

    files: AdapterFiles
    base: Path

    noun = "adapter"

    @property
    def folder(self) -> Path:
        return self.files.folder

    @property
    def card(self) -> Card | None:
        return self.files.card

    @property
    def unscaled(self) -> str:
        if not self.files.spec.use_dora:
            return ""
        return "A DoRA adapter also changes the size of the base's weights: it has no scale to choose."

    @property
    def ranks(self) -> int:
        rank = max(self.files.spec.rank(module) for module in self.files.modules)
        return -(-rank // PAGE) * PAGE

    def count(self) -> int:
        return self.files.spec.count_weights(BaseShape(self.base).linears)

    def settings(self) -> dict[str, Any]:
        spec = self.files.spec
        return {
            "lora_r": spec.r, "lora_alpha": spec.lora_alpha, "lora_target_modules": list(spec.target_modules),
            "use_rslora": spec.use_rslora, "use_dora": spec.use_dora,
        }  # fmt: skip

    @contextmanager
    def asking(self, held: Held, limits: EngineLimits) -> Iterator[Ask]:
        engine = open_on(held.base, held, limits)
        try:
            yield partial(ask, engine, self.folder)
        finally:
            engine.close()

    def scoring(self, held: Held) -> AdaptedModel:
        return open_model(self.files, held.base, held.precision, held.device)
