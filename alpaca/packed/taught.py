"""Rows that the base itself teaches: not one next token is the target, but all that the base would say there.

The teacher is the same model without its adapter, so there is no second copy: one more forward pass, without gradients,
over the taught rows of a pack alone. They are packed apart for it, and packing is exact, so each reads there what it
reads in the pack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alpaca.packed.batch import MicroBatch, collate, label_count
from alpaca.packed.loss import head_divergence, head_loss
from alpaca.packed.model import PackedModel
from alpaca.packed.packing import Pack
from alpaca.prompts.encode import Encoded


@dataclass(frozen=True, slots=True)
class Taught:
    """Which labels of a pack the base teaches.

    `labels` [k]: their places among the pack's m labels. `batch`: the rows they are of, packed apart, with the same k
    labels in the same order. `weight`: what one unit of divergence counts beside one of cross-entropy.
    """

    labels: Tensor
    batch: MicroBatch
    weight: float

    def inputs(self, device: torch.device) -> dict[str, Any]:
        """What TaughtModel.forward takes as `taught`, on `device`."""
        batch = self.batch.inputs(device)
        del batch["targets"]
        return batch | {"labels": self.labels.to(device, non_blocking=True), "weight": self.weight}


def collate_taught(pack: Pack, examples: Sequence[Encoded], first: int, weight: float) -> Taught:
    """Those examples of a pack whose index is `first` or a later one. Without any, the base reads two tokens without a
    label: in sharded training it must read something wherever it does in another process."""
    places: list[int] = []
    labels = 0
    for index in pack:
        count = label_count(examples[index])
        if index >= first:
            places.extend(range(labels, labels + count))
        labels += count
    batch = collate(tuple(index for index in pack if index >= first), examples)
    return Taught(torch.tensor(places, dtype=torch.long), batch, weight)


class TaughtModel(PackedModel):
    """A packed model some of whose labels the base teaches."""

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        bounds: list[int],
        label_positions: Tensor,
        targets: Tensor,
        taught: dict[str, Any] | None = None,
    ) -> Tensor:
        """As PackedModel's; the loss of the labels that `taught` (Taught.inputs) names is their weighted divergence
        from the base, KL(base ‖ model), in place of cross-entropy."""
        if taught is None:
            return super().forward(input_ids, position_ids, bounds, label_positions, targets)
        teacher = self._of_the_base(taught)
        hidden = self.decode(input_ids, position_ids, bounds)
        if not len(targets):  # an idle micro-batch still takes part in every collective of sharded training
            return hidden.sum().float() * 0.0
        hidden = hidden[label_positions]
        of_the_data = torch.ones_like(targets, dtype=torch.bool).index_fill_(0, taught["labels"], False)
        divergence = head_divergence(hidden[taught["labels"]], self.head, teacher)
        return head_loss(hidden[of_the_data], self.head, targets[of_the_data]) + divergence * taught["weight"]

    @torch.no_grad()
    def _of_the_base(self, taught: dict[str, Any]) -> Tensor:
        """The hidden states of the taught labels without the adapter, [k, width]."""
        with without_adapter(self.peft):
            hidden = self.decode(taught["input_ids"], taught["position_ids"], taught["bounds"])
        return hidden[taught["label_positions"]]


@contextmanager
def without_adapter(peft: nn.Module) -> Iterator[None]:
    """The base itself. PEFT's own disable_adapter also turns the gradients of weights off and on, which DDP and FSDP
    do not expect within a step."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: list[Any] = [layer for layer in peft.modules() if isinstance(layer, BaseTunerLayer)]
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, disabled in zip(layers, before, strict=True):
            layer._disable_adapters = disabled
