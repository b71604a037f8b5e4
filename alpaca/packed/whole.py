"""A model all of whose weights are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from alpaca.packed.model import PackedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class WholeModel(PackedModel):
    """A packed model without an adapter. Its weights are fp32, and so are their gradients and the optimizer's moments.

    With `compute` bf16 the layers' products are taken in bf16, each from a rounded copy of its weight that lives for
    one forward and backward pass; norms and what runs along the layers stay fp32. A step smaller than bf16 can tell
    apart is not lost this way: it is added to the fp32 weight.
    """

    def __init__(self, model: PreTrainedModel, compute: torch.dtype) -> None:
        super().__init__(model)
        self.compute = compute

    def decode(self, input_ids: Tensor, position_ids: Tensor, bounds: list[int]) -> Tensor:
        """The last hidden states of a pack in `compute`, [n, width]."""
        with torch.autocast(input_ids.device.type, dtype=self.compute, enabled=self.compute != torch.float32):
            hidden = super().decode(input_ids, position_ids, bounds)
        return hidden.to(self.compute)
