"""Safetensors files written one tensor at a time, so that memory holds a tensor and never a model.

Format: https://huggingface.co/docs/safetensors — 8 bytes length, a JSON header, then the tensors' bytes in order.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alpaca.errors import ConversionError

if TYPE_CHECKING:
    import torch

ITEM_SIZE = {"BF16": 2, "F16": 2, "F32": 4}
_WRITE_AT_ONCE = 16 << 20


@dataclass(frozen=True)
class TensorPlan:
    """A tensor to be written: its Hugging Face name, shape, and dtype as safetensors spells it."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_SIZE[self.dtype]


def dtype_name(dtype: torch.dtype) -> str | None:
    """Safetensors' name of a dtype that a base may have; None for any other."""
    import torch

    return {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}.get(dtype)


def split_plan(plans: list[TensorPlan], max_bytes: int) -> list[list[TensorPlan]]:
    """Cut the list into runs of at most `max_bytes`; a larger tensor gets a file of its own."""
    shards: list[list[TensorPlan]] = []
    room = 0
    for plan in plans:
        if not shards or plan.n_bytes > room:
            shards.append([])
            room = max_bytes
        shards[-1].append(plan)
        room -= plan.n_bytes
    return shards


def shard_names(count: int) -> list[str]:
    """The names that transformers expects: `model.safetensors`, or `model-00001-of-00002.safetensors` ….

    Raises ConversionError for more files than five digits can number.
    """
    if count > 99_999:
        raise ConversionError(f"--max_shard_size would give {count} files; choose a larger one")
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def write_shard(
    path: Path, plans: list[TensorPlan], tensors: Iterable[torch.Tensor], update: Callable[[int], None]
) -> None:
    """Write one file; `tensors` are asked for one after the other, in the order of `plans`."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for plan in plans:
        header[plan.name] = {
            "dtype": plan.dtype, "shape": list(plan.shape), "data_offsets": [offset, offset + plan.n_bytes]
        }  # fmt: skip
        offset += plan.n_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for plan, tensor in zip(plans, tensors, strict=True):
            _write_tensor(file.write, plan, tensor, update)


def _write_tensor(
    write: Callable[[memoryview], int], plan: TensorPlan, tensor: torch.Tensor, update: Callable[[int], None]
) -> None:
    import torch

    if tuple(tensor.shape) != plan.shape or dtype_name(tensor.dtype) != plan.dtype:
        raise ConversionError(
            f"{plan.name}: {plan.dtype} {plan.shape} was expected, {tensor.dtype} {tuple(tensor.shape)} came"
        )
    data = memoryview(tensor.contiguous().view(torch.uint8).numpy().data).cast("B")
    for start in range(0, len(data), _WRITE_AT_ONCE):
        update(write(data[start : start + _WRITE_AT_ONCE]))


def write_index(folder: Path, names: list[str], shards: list[list[TensorPlan]]) -> None:
    """Write `model.safetensors.index.json`, which says which file holds which tensor."""
    weight_map = {plan.name: name for name, shard in zip(names, shards, strict=True) for plan in shard}
    total = sum(plan.n_bytes for shard in shards for plan in shard)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
