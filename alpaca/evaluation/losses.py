"""The loss of every row by itself, of the base, of the adapter, and of the adapter at any strength between."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from alpaca.adapter.folder import AdapterFiles, load_adapter
from alpaca.base.load import load_model
from alpaca.errors import NonFiniteLoss
from alpaca.packed import attention
from alpaca.packed.batch import label_count
from alpaca.packed.scoring import ScoringModel, token_losses
from alpaca.prompts.encode import Encoded


@dataclass(frozen=True)
class RowLosses:
    """The losses of each row's trained tokens, float64 (tokens,), in the order of the rows."""

    tokens: Sequence[np.ndarray]

    @cached_property
    def sums(self) -> np.ndarray:
        """Summed loss of each row, float64 (n,)."""
        return np.array([losses.sum() for losses in self.tokens], dtype=np.float64)

    @cached_property
    def counts(self) -> np.ndarray:
        """Trained tokens of each row, float64 (n,)."""
        return np.array([len(losses) for losses in self.tokens], dtype=np.float64)

    @property
    def mean(self) -> float:
        """Loss per token over all rows."""
        return float(self.sums.sum() / self.counts.sum())

    def pick(self, places: Sequence[int] | np.ndarray) -> RowLosses:
        """Those of some rows."""
        return RowLosses([self.tokens[place] for place in places])

    def first(self, rows: int) -> RowLosses:
        """Those of the first rows."""
        return RowLosses(self.tokens[:rows])

    def last_answers(self, rows: Sequence[Encoded]) -> RowLosses:
        """Those of the last answers of `rows`, the rows that were measured."""
        lengths = [label_count(Encoded(row.input_ids, row.trained[-1:])) for row in rows]
        pairs = zip(self.tokens, lengths, strict=True)
        return RowLosses([losses[len(losses) - length :] for losses, length in pairs])


class Scored(Protocol):
    """What losses are measured of."""

    def at(self, scale: float) -> contextlib.AbstractContextManager[ScoringModel]:
        """The model at `scale`, from the base (0) to what was made of it (1)."""


class AdaptedModel(ScoringModel):
    """A base with an adapter, or several that answer together."""

    @contextlib.contextmanager
    def at(self, scale: float) -> Iterator[ScoringModel]:
        """The model with all adapters at `scale`."""
        with at_scale(self.peft, scale):
            yield self


def open_model(
    files: AdapterFiles, base: Any, precision: str, device: torch.device, beside: Sequence[AdapterFiles] = ()
) -> AdaptedModel:
    """The base, loaded anew from its folder, with the saved adapter on it, and those that it answers together with.
    Raises what loading any of them does."""
    attention.register()
    model = load_model(base, precision, device, attention.choose_attention(device, precision)[0])
    peft: Any = load_adapter(model, files)
    names = ["default", *(f"beside_{number}" for number in range(len(beside)))]
    for name, other in zip(names[1:], beside, strict=True):
        load_adapter(peft, other, name=name)
    if beside:
        peft.base_model.set_adapter(names)
    return AdaptedModel(peft)


def row_losses(
    model: Scored,
    rows: Sequence[Encoded],
    scale: float = 1.0,
    done: Callable[[int], object] = lambda tokens: None,
) -> RowLosses:
    """Measure rows at `scale` (0 is the base itself); `done` is told of the tokens of each pack.

    Raises NonFiniteLoss with the row's number.
    """
    with model.at(scale) as scoring:
        found = RowLosses(token_losses(scoring, rows, done))
    for row, total in zip(rows, found.sums, strict=True):
        if not np.isfinite(total):
            raise NonFiniteLoss(
                f"the loss of row {row.row} is {total} at scale {scale:g}, where 0 is the base: it can't be used like "
                "this; train again with a lower --learning_rate"
            )
    return found


@contextlib.contextmanager
def at_scale(peft: PeftModel, scale: float) -> Iterator[None]:
    """The model with the adapter's effect multiplied by `scale`; at 0 the adapter takes no part at all.

    A DoRA adapter also sets the magnitude of the base's weights, so that scales between 0 and 1 mean nothing for it.
    """
    if scale == 0:
        with peft.disable_adapter():
            yield
        return
    layers = [layer for layer in peft.modules() if isinstance(layer, LoraLayer)]
    before = [dict(layer.scaling) for layer in layers]
    try:
        for layer in layers:
            layer.scaling.update({name: factor * scale for name, factor in layer.scaling.items()})
        yield
    finally:
        for layer, factors in zip(layers, before, strict=True):
            layer.scaling.update(factors)
