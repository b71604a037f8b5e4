"""The loss of every row by itself, of the base, of the adapter, and of the adapter at any strength between."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.nn import functional

from alpaca.adapter.folder import AdapterFiles, load_adapter
from alpaca.base.load import load_model
from alpaca.errors import NonFiniteLoss
from alpaca.packed import attention
from alpaca.packed.batch import collate, label_count
from alpaca.packed.loss import CHUNK_LOGITS
from alpaca.packed.model import PackedModel
from alpaca.packed.packing import fill_packs
from alpaca.prompts.encode import Encoded

PACK_TOKENS = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True)
class RowLosses:
    """Summed loss and number of trained tokens of each row, in the order of the rows, both float64 (n,)."""

    sums: np.ndarray
    counts: np.ndarray

    @property
    def mean(self) -> float:
        """Loss per token over all rows."""
        return float(self.sums.sum() / self.counts.sum())

    def first(self, rows: int) -> RowLosses:
        """Those of the first rows."""
        return RowLosses(self.sums[:rows], self.counts[:rows])


class ScoringModel(PackedModel):
    """A packed model that gives the loss of every labelled token apart."""

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, bounds: list[int], label_positions: Tensor, targets: Tensor
    ) -> Tensor:
        """input_ids, position_ids [1, n]; bounds [0, …, n]; label_positions, targets [m] → losses [m], fp32."""
        hidden, head = self.decode(input_ids, position_ids, bounds)[label_positions], self.head
        rows = max(1, CHUNK_LOGITS // head.shape[0])
        losses = [
            functional.cross_entropy(functional.linear(part, head).float(), wanted, reduction="none")
            for part, wanted in zip(hidden.split(rows), targets.split(rows), strict=True)
        ]
        return torch.cat(losses)


def open_model(files: AdapterFiles, base: Any, precision: str, device: torch.device) -> ScoringModel:
    """The base, loaded anew from its folder, with the saved adapter on it. Raises what loading either of them does."""
    attention.register()
    model = load_model(base, precision, device, attention.choose_attention(device, precision)[0])
    return ScoringModel(load_adapter(model, files))


@torch.inference_mode()
def row_losses(
    model: ScoringModel,
    rows: Sequence[Encoded],
    scale: float = 1.0,
    done: Callable[[int], object] = lambda tokens: None,
) -> RowLosses:
    """Measure rows with the adapter at `scale` (0 is the base itself); `done` is told of the tokens of each pack.

    Raises NonFiniteLoss with the row's number.
    """
    device = next(model.parameters()).device
    sums, counts = np.zeros(len(rows)), np.array([label_count(row) for row in rows], dtype=np.float64)
    packs = fill_packs(range(len(rows)), [len(row) for row in rows], PACK_TOKENS[device.type])
    with at_scale(model.peft, scale):
        for pack in packs:
            losses = model(**collate(pack, rows).inputs(device)).double().cpu()
            for index, part in zip(pack, losses.split([int(counts[index]) for index in pack]), strict=True):
                sums[index] = part.sum().item()
                if not np.isfinite(sums[index]):
                    raise NonFiniteLoss(
                        f"the loss of row {rows[index].row} is {sums[index]} with the adapter at scale {scale:g}: it "
                        "can't be used like this; train again with a lower --learning_rate"
                    )
            done(sum(len(rows[index]) for index in pack))
    return RowLosses(sums, counts)


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
