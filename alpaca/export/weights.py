"""The model that is exported, tensor by tensor: the base's weights with the adapters' changes added in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from alpaca.adapter.folder import PREFIX, AdapterFiles, load_tensors
from alpaca.base.headers import COMPUTED, EMBEDDING, HEAD, TensorEntry, read_config, tensor_entries
from alpaca.errors import ExportRefused

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Strength:
    """An adapter, checked against the base, and how strongly it is exported: 1 is as trained."""

    files: AdapterFiles
    scale: float = 1.0

    @property
    def name(self) -> str:
        return self.files.folder.name

    def __post_init__(self) -> None:
        if self.files.spec.use_dora and self.scale != 1:
            raise ExportRefused(f"{self.name} is a DoRA adapter: its strength can't be changed, it must be 1")


class MergedWeights:
    """The tensors of `base` with `adapters` merged in, one at a time: memory holds one of them, and the adapters."""

    def __init__(self, base: Path, adapters: Sequence[Strength] = ()) -> None:
        self.base = base
        self.config = read_config(base)
        self.adapters = tuple(used for used in adapters if used.scale)
        if any(used.files.spec.use_dora for used in self.adapters) and len(self.adapters) > 1:
            raise ExportRefused("a DoRA adapter is exported alone: its change depends on the weights it is added to")
        self.entries = _wanted(base, bool(self.config.get("tie_word_embeddings")))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape, in the order of the base's files."""
        return {name: entry.shape for name, entry in self.entries.items()}

    @property
    def largest(self) -> int:
        """The most numbers that one tensor has."""
        return max(entry.numel for entry in self.entries.values())

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor in float32, in memory of its own."""
        import torch

        weight = self._base(name)
        module = name.removesuffix(".weight")
        for used, tensors in zip(self.adapters, self._tensors, strict=True):
            if module in used.files.modules:
                _add(weight, module, used, tensors)
        if not torch.isfinite(weight).all():
            raise ExportRefused(f"{name} holds values that are not finite after merging")
        return weight

    def tensors(self, names: Sequence[str]) -> Iterator[torch.Tensor]:
        """The tensors of these names, one after the other."""
        return (self.tensor(name) for name in names)

    @cached_property
    def _tensors(self) -> list[dict[str, torch.Tensor]]:
        return [load_tensors(used.files) for used in self.adapters]

    def _base(self, name: str) -> torch.Tensor:
        """Read, not mapped, so that what was read once does not pile up."""
        import torch

        entry = self.entries[name]
        kinds = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
        with entry.file.open("rb") as file:
            file.seek(entry.start)
            content = bytearray(file.read(entry.end - entry.start))
        return torch.frombuffer(content, dtype=kinds[entry.dtype]).reshape(entry.shape).float()


def _wanted(base: Path, tied: bool) -> dict[str, TensorEntry]:
    """The tensors that a model is made of: no computed frequencies, no second copy of a tied head."""
    entries = {entry.name: entry for entry in tensor_entries(base) if not entry.name.endswith(COMPUTED)}
    if tied and any(name.endswith(EMBEDDING) for name in entries):
        entries.pop(HEAD, None)
    return entries


def _add(weight: torch.Tensor, module: str, used: Strength, tensors: dict[str, torch.Tensor]) -> None:
    """Add B·A, scaled (LoRA, arXiv:2106.09685), or turn the whole row as DoRA does (arXiv:2402.09353)."""
    import torch

    spec = used.files.spec
    a, b = (tensors[f"{PREFIX}{module}.lora_{side}.weight"].float() for side in "AB")
    weight.addmm_(b, a, alpha=spec.scaling(module) * used.scale)
    if spec.use_dora:
        magnitude = tensors[f"{PREFIX}{module}.lora_magnitude_vector"].float()
        weight.mul_((magnitude / torch.linalg.vector_norm(weight, dim=1))[:, None])
