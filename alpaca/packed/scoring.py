"""The loss of every trained token of rows, for reports and checks: packs go through the model, no gradient is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from alpaca.base.load import load_model
from alpaca.packed import attention
from alpaca.packed.batch import collate, label_count
from alpaca.packed.loss import CHUNK_LOGITS
from alpaca.packed.model import PackedModel
from alpaca.packed.packing import fill_packs
from alpaca.prompts.encode import Encoded

PACK_TOKENS = {"cpu": 1024, "cuda": 8192}
PACED = 8  # rows that tell how fast it goes


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


def open_base(base: Path, precision: str, device: torch.device) -> ScoringModel:
    """The base alone, loaded from its folder. Raises what loading does."""
    attention.register()
    return ScoringModel(load_model(base, precision, device, attention.choose_attention(device, precision)[0]))


@torch.inference_mode()
def token_losses(
    model: ScoringModel, rows: Sequence[Encoded], done: Callable[[int], object] = lambda tokens: None
) -> list[np.ndarray]:
    """The loss of each trained token of each row, float64 (tokens,), in the order of the rows; a row's first token has
    none. `done` is told of the tokens of each pack."""
    device = next(model.parameters()).device
    found: list[np.ndarray] = [np.empty(0)] * len(rows)
    for pack in fill_packs(range(len(rows)), [len(row) for row in rows], PACK_TOKENS[device.type]):
        losses = model(**collate(pack, rows).inputs(device)).double().cpu()
        for index, part in zip(pack, losses.split([label_count(rows[index]) for index in pack]), strict=True):
            found[index] = part.numpy()
        done(sum(len(rows[index]) for index in pack))
    return found


def seconds_per_token(model: ScoringModel, rows: Sequence[Encoded]) -> float:
    """Of a forward pass, measured on a few of the rows after a warm-up."""
    few = rows[:PACED]
    token_losses(model, few)
    started = time.monotonic()
    token_losses(model, few)
    return (time.monotonic() - started) / sum(map(len, few))
