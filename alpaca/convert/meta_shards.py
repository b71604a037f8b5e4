"""Meta's weight files: found, opened without being read, checked against the shapes they must have, and joined."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING

from alpaca.convert.layout import IGNORED, Mapping, mappings
from alpaca.convert.params import Params
from alpaca.convert.safetensors_writer import dtype_name
from alpaca.errors import ConversionError

if TYPE_CHECKING:
    import torch

_SHOWN = 5


def find_shards(folder: Path) -> list[Path]:
    """`consolidated.NN.pth` in order. Raises ConversionError if there is none or a number is missing."""
    found = {
        int(match[1]): path
        for path in folder.iterdir()
        if (match := re.fullmatch(r"consolidated\.(\d+)\.pth", path.name))
    }
    if not found:
        raise ConversionError(f"{folder} has no consolidated.NN.pth; Meta's weights go there")
    if missing := sorted(set(range(max(found) + 1)) - found.keys()):
        names = ", ".join(f"consolidated.{number:02d}.pth" for number in missing)
        raise ConversionError(f"{folder} lacks {names}; copy every shard there")
    return [found[number] for number in sorted(found)]


def open_shard(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name, mapped from the file: nothing is read before it is used, and no code in the file is run."""
    import torch

    try:
        tensors = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[0]
        raise ConversionError(
            f"{path} holds more than tensors and was not loaded, because that could run code from the file ({reason}); "
            "get the weights from a source you trust"
        ) from None
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ConversionError(
            f"{path} can't be opened: {reason}. If it is whole but of PyTorch's old format, rewrite it once with "
            "torch.save(torch.load(path, weights_only=True), path)"
        ) from None
    except (OSError, EOFError, ValueError, KeyError, AssertionError, TypeError, AttributeError, IndexError) as error:
        raise ConversionError(f"{path} is no PyTorch checkpoint, or is damaged: {error}") from None
    if not isinstance(tensors, dict) or not tensors or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in tensors.items()
    ):  # fmt: skip
        raise ConversionError(f"{path} is no table of named tensors; Meta's consolidated files are")
    return tensors


class Checkpoint:
    """A checked checkpoint: `mappings` says what is in it, `tied` whether the head is the embedding."""

    def __init__(self, shards: list[Path], params: Params, vocab_size: int) -> None:
        self.shards = shards
        opened = [open_shard(path) for path in shards]
        _check_count(opened, shards, params)
        cut = _embedding_cut(opened, params, vocab_size)
        self.mappings = mappings(params, vocab_size, tied=False, embedding_cut=cut)
        self.tied = all("output.weight" not in tensors for tensors in opened)
        if self.tied:
            self.mappings.pop()
        self._check(opened)
        if not self.tied and _head_is_embedding(opened, self.mappings):
            self.tied = True
            self.mappings.pop()
        self.dtypes = {mapping.target: opened[0][mapping.source].dtype for mapping in self.mappings}

    def read(self, opened: list[dict[str, torch.Tensor]], mapping: Mapping) -> torch.Tensor:
        """The whole tensor. Norms are in every shard; the first one's is taken, as Meta's loader of rank 0 does."""
        return _join(opened, mapping)

    def _check(self, opened: list[dict[str, torch.Tensor]]) -> None:
        faults: list[str] = []
        expected = {mapping.source: mapping for mapping in self.mappings}
        for path, tensors in zip(self.shards, opened, strict=True):
            faults += [f"{path.name} lacks {name}" for name in expected if name not in tensors]
            for name, tensor in tensors.items():
                if name in IGNORED:
                    continue
                if name not in expected:
                    faults.append(f"{path.name} has {name}, which no LLaMA text model of this size has")
                elif fault := _tensor_fault(tensor, expected[name], len(opened), opened[0].get(name)):
                    faults.append(f"{path.name}: {name} {fault}")
        if faults:
            more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
            raise ConversionError(
                f"{self.shards[0].parent} does not fit its params.json and tokenizer: "
                f"{'; '.join(faults[:_SHOWN])}{more}"
            )


def _tensor_fault(tensor: torch.Tensor, mapping: Mapping, n_shards: int, first: torch.Tensor | None) -> str | None:
    import torch

    wanted = mapping.part_shape(n_shards)
    if tuple(tensor.shape) != wanted:
        return f"has shape {list(tensor.shape)}, expected {list(wanted)}"
    if dtype_name(tensor.dtype) is None or tensor.layout != torch.strided:
        return f"is {tensor.dtype}; only float16, bfloat16 and float32 can be converted"
    if first is not None and tensor.dtype != first.dtype:
        return f"is {tensor.dtype}, but {first.dtype} in the first shard"
    return None


def _check_count(opened: list[dict[str, torch.Tensor]], shards: list[Path], params: Params) -> None:
    """The rows of one query projection tell into how many files the model was cut."""
    rows = [
        tensors["layers.0.attention.wq.weight"].shape[:1]
        for tensors in opened
        if "layers.0.attention.wq.weight" in tensors
    ]
    if not rows or not rows[0] or not rows[0][0] or params.dim % rows[0][0]:
        return
    wanted = params.dim // rows[0][0]
    if wanted != len(shards):
        raise ConversionError(
            f"{shards[0].parent}: the weights were cut into {wanted} files, but there are {len(shards)} "
            f"(consolidated.00.pth to consolidated.{wanted - 1:02d}.pth were expected)"
        )


def _embedding_cut(opened: list[dict[str, torch.Tensor]], params: Params, vocab_size: int) -> int:
    """LLaMA 1 and 2 cut the embedding across its width, Llama 3 across the vocabulary; the shape tells."""
    embedding = opened[0].get("tok_embeddings.weight")
    cut_vocabulary = embedding is not None and tuple(embedding.shape) == (vocab_size // len(opened), params.dim)
    return 0 if cut_vocabulary else 1


def _head_is_embedding(opened: list[dict[str, torch.Tensor]], found: list[Mapping]) -> bool:
    """Llama 3.2's small models store the tied head twice. The first rows settle it for nearly every other model."""
    embedding, head = found[0], found[-1]
    if opened[0][embedding.source].dtype != opened[0][head.source].dtype:
        return False
    first = [tensors[embedding.source][:1] for tensors in opened]
    start = first[0] if embedding.cut == 0 or len(opened) == 1 else _cat(first, 1)
    if not bool((start == opened[0][head.source][:1]).all()):
        return False
    return bool((_join(opened, embedding) == _join(opened, head)).all())


def _join(opened: list[dict[str, torch.Tensor]], mapping: Mapping) -> torch.Tensor:
    parts = [tensors[mapping.source] for tensors in opened]
    if mapping.cut is None or len(parts) == 1:
        return parts[0]
    return _cat(parts, mapping.cut)


def _cat(parts: list[torch.Tensor], dim: int) -> torch.Tensor:
    import torch

    return torch.cat(parts, dim=dim)
