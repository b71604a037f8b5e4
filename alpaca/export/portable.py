"""An adapter as every tool reads it: plain LoRA of one rank and one alpha, its strength in the numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alpaca.adapter.folder import PREFIX, WEIGHTS, load_tensors
from alpaca.adapter.lora_config import CONFIG, LoraSpec
from alpaca.errors import ExportRefused
from alpaca.export.weights import Strength

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Portable:
    """`modules`: name → (A [rank, in], B [out, rank]), float32 on the CPU; all are scaled by `alpha` / `rank`."""

    rank: int
    alpha: float
    modules: dict[str, tuple[torch.Tensor, torch.Tensor]]
    notes: tuple[str, ...]
    """What was rewritten, and why."""

    def save(self, folder: Path, base: str) -> None:
        """Write PEFT's two files. `base`: the name under which the base is served there."""
        from safetensors.torch import save_file

        tensors = {
            f"{PREFIX}{module}.lora_{side}.weight": tensor.contiguous()
            for module, pair in self.modules.items()
            for side, tensor in zip("AB", pair, strict=True)
        }
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, str(folder / WEIGHTS), metadata={"format": "pt"})
        (folder / WEIGHTS).chmod(0o644)
        spec = LoraSpec(self.rank, self.alpha, tuple(sorted({module.rpartition(".")[2] for module in self.modules})))
        named = spec.adapted(dict.fromkeys(self.modules, (0, 0)))
        targets = spec.target_modules if set(named) == set(self.modules) else tuple(sorted(self.modules))
        config = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True,
            "r": self.rank, "lora_alpha": self.alpha, "lora_dropout": 0.0, "bias": "none", "use_rslora": False,
            "use_dora": False, "target_modules": list(targets), "rank_pattern": {}, "alpha_pattern": {},
            "fan_in_fan_out": False, "init_lora_weights": True, "modules_to_save": None, "revision": None,
        }  # fmt: skip
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def portable(strengths: Sequence[Strength]) -> Portable:
    """One plain adapter that computes what `strengths` do together. Raises ExportRefused for DoRA.

    A single adapter of one rank keeps its numbers, and its strength goes into alpha. Several are put side by side:
    [B₁ B₂]·[A₁; A₂] is B₁·A₁ + B₂·A₂, each scaled beforehand.
    """
    for used in strengths:
        if used.files.spec.use_dora:
            raise ExportRefused(f"{used.name} is a DoRA adapter, which only a merged model can hold: export `merged`")
    used = strengths[0]
    spec = used.files.spec
    if len(strengths) == 1 and not spec.rank_pattern and not spec.alpha_pattern:
        tensors = load_tensors(used.files)
        modules = {module: _pair(tensors, module) for module in used.files.modules}
        alpha = spec.lora_alpha * (spec.r**0.5 if spec.use_rslora else 1) * used.scale
        return Portable(spec.r, alpha, modules, tuple(_notes(used)))
    return _side_by_side(strengths)


def _side_by_side(strengths: Sequence[Strength]) -> Portable:
    import torch

    parts: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for used in strengths:
        tensors = load_tensors(used.files)
        for module in used.files.modules:
            a, b = _pair(tensors, module)
            parts.setdefault(module, []).append((a, b * (used.files.spec.scaling(module) * used.scale)))
    rank = max(sum(len(a) for a, _ in pairs) for pairs in parts.values())
    modules = {}
    for module, pairs in parts.items():
        a, b = torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs], 1)
        missing = rank - len(a)
        modules[module] = (torch.nn.functional.pad(a, (0, 0, 0, missing)), torch.nn.functional.pad(b, (0, missing)))
    notes = [note for used in strengths for note in _notes(used)]
    together = f"{len(strengths)} adapters are one of rank {rank}" if len(strengths) > 1 else f"all have rank {rank}"
    return Portable(rank, float(rank), modules, (*notes, f"{together}, their scales multiplied into B"))


def _pair(tensors: dict[str, torch.Tensor], module: str) -> tuple[torch.Tensor, torch.Tensor]:
    return tensors[f"{PREFIX}{module}.lora_A.weight"].float(), tensors[f"{PREFIX}{module}.lora_B.weight"].float()


def _notes(used: Strength) -> list[str]:
    spec = used.files.spec
    notes = [f"{used.name}: rsLoRA's alpha / sqrt(r) is written as plain alpha / r"] if spec.use_rslora else []
    notes += [f"{used.name}: its strength {used.scale:g} is in the scale"] if used.scale != 1 else []
    return notes + ([f"{used.name}: its ranks differ by layer"] if spec.rank_pattern else [])
