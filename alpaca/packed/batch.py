"""A micro-batch: one pack as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alpaca.packed.packing import Pack
from alpaca.prompts.encode import Encoded


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """A pack of n tokens with m labels, on the CPU until `inputs` moves it."""

    input_ids: Tensor  # [1, n]
    position_ids: Tensor  # [1, n], from 0 in each example
    bounds: list[int]  # where the examples begin and end: [0, …, n]
    label_positions: Tensor  # [m], the positions whose next token is trained
    targets: Tensor  # [m]

    def inputs(self, device: torch.device) -> dict[str, Any]:
        """What PackedModel.forward takes, on `device`."""
        return {
            "input_ids": self.input_ids.to(device, non_blocking=True),
            "position_ids": self.position_ids.to(device, non_blocking=True),
            "bounds": self.bounds,
            "label_positions": self.label_positions.to(device, non_blocking=True),
            "targets": self.targets.to(device, non_blocking=True),
        }


def collate(pack: Pack, examples: Sequence[Encoded]) -> MicroBatch:
    """Lay the examples of a pack end to end. A trained token is the target of the position before it in its own
    example; the first token of an example is nobody's target. An idle pack is two tokens without a label."""
    ids: list[int] = []
    positions: list[int] = []
    bounds = [0]
    label_positions: list[int] = []
    for index in pack:
        example, offset = examples[index], len(ids)
        ids.extend(example.input_ids)
        positions.extend(range(len(example)))
        bounds.append(len(ids))
        for start, end in example.trained:
            label_positions.extend(range(offset + max(start, 1) - 1, offset + end - 1))
    if not pack:
        ids, positions, bounds = [0, 0], [0, 1], [0, 2]
    return MicroBatch(
        torch.tensor([ids]),
        torch.tensor([positions]),
        bounds,
        torch.tensor(label_positions, dtype=torch.long),
        torch.tensor([ids[position + 1] for position in label_positions], dtype=torch.long),
    )


def label_count(example: Encoded) -> int:
    """How many tokens of an example are a target in `collate`."""
    return sum(end - max(start, 1) for start, end in example.trained)
