"""`merged`: a Hugging Face folder with the adapters in the weights, written tensor by tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alpaca.convert.model_folder import SHARD, STORED, write_settings, write_tokenizer, write_weights
from alpaca.convert.safetensors_writer import TensorPlan
from alpaca.errors import ExportRefused
from alpaca.export.leaving import Leaving
from alpaca.export.weights import MergedWeights

if TYPE_CHECKING:
    import torch

AS_BASE = "auto"
"""Every tensor in the dtype that it has in the base."""


def size(leaving: Leaving, precision: str) -> int:
    """Bytes of the weights in `precision`."""
    return sum(plan.n_bytes for plan in _plans(leaving.weights, precision))


def write_folder(leaving: Leaving, folder: Path, precision: str, shard: int = SHARD) -> None:
    """Weights, config, generation config and tokenizer. Raises ExportRefused for numbers that fp16 can't hold."""
    weights = leaving.weights
    plans = _plans(weights, precision)
    write_weights(plans, lambda names: _in_dtype(weights, names, precision), folder, leaving.name, shard)
    write_settings(leaving.base, leaving.tokenizer, leaving.ends, main_precision(weights, precision), folder)
    write_tokenizer(leaving.base, leaving.tokenizer, leaving.jinja, folder)


def _plans(weights: MergedWeights, precision: str) -> list[TensorPlan]:
    return [
        TensorPlan(name, shape, STORED[stored_as(weights, name, precision)]) for name, shape in weights.shapes.items()
    ]


def stored_as(weights: MergedWeights, name: str, precision: str) -> str:
    """How a tensor is stored: fp32, bf16 or fp16."""
    if precision != AS_BASE:
        return precision
    return {"BF16": "bf16", "F16": "fp16"}.get(weights.entries[name].dtype, "fp32")


def main_precision(weights: MergedWeights, precision: str) -> str:
    """How most of the numbers are stored."""
    counts: Counter[str] = Counter()
    for name, entry in weights.entries.items():
        counts[stored_as(weights, name, precision)] += entry.numel
    return counts.most_common(1)[0][0]


def _in_dtype(weights: MergedWeights, names: Sequence[str], precision: str) -> Iterator[torch.Tensor]:
    for name in names:
        yield in_dtype(name, weights.tensor(name), stored_as(weights, name, precision))


def in_dtype(name: str, tensor: torch.Tensor, precision: str) -> torch.Tensor:
    """A float32 tensor as it is stored."""
    import torch

    stored = tensor.to({"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision])
    if not torch.isfinite(stored).all():
        raise ExportRefused(f"{name} holds numbers that {precision} can't: take --dtype bf16 or fp32")
    return stored
