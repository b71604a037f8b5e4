"""An adapter and its base: one model in memory, with the adapter at any strength."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from alpaca.adapter.ancestry import find_together
from alpaca.adapter.card import Card
from alpaca.adapter.folder import WEIGHTS, AdapterFiles, BaseShape, verify_files
from alpaca.evaluation.answers import ask
from alpaca.evaluation.losses import AdaptedModel, open_model
from alpaca.evaluation.tuned import Ask, Held, open_on
from alpaca.serving.limits import EngineLimits
from alpaca.serving.lora import columns_taken


@dataclass(frozen=True)
class TunedAdapter:
    """The saved adapter, whose `files` fit `base`. `beside`: the adapters that it was trained beside, and is measured
    together with."""

    files: AdapterFiles
    base: Path
    beside: tuple[AdapterFiles, ...] = ()

    noun = "adapter"
    flop = 4.0

    @classmethod
    def of(cls, folder: Path, base: Path, given: Sequence[Path]) -> TunedAdapter:
        """The adapter with those it belongs together with, which may be `given`. Raises the errors of verifying and of
        finding them."""
        files = verify_files(folder, base)
        on_top_of = files.card.on_top_of if files.card is not None else None
        together = find_together(folder, WEIGHTS, on_top_of, given)
        return cls(files, base, tuple(verify_files(path, base) for path in together))

    @property
    def all(self) -> tuple[AdapterFiles, ...]:
        """Those that answer together."""
        return self.files, *self.beside

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
    def columns(self) -> int:
        return columns_taken(self.all)

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
            yield partial(ask, engine, [files.folder for files in self.all])
        finally:
            engine.close()

    def scoring(self, held: Held) -> AdaptedModel:
        return open_model(self.files, held.base, held.precision, held.device, self.beside)
