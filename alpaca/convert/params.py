"""`params.json` of Meta's checkpoints: the sizes of the model, checked."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from alpaca.errors import ConversionError

# What a run was started with, not what the model is.
_HARMLESS = frozenset({"max_batch_size", "max_seq_len", "model_parallel_size"})


@dataclass(frozen=True)
class Params:
    """Meta's names and defaults; `vocab_size` is -1 where the tokenizer decides."""

    dim: int
    n_layers: int
    n_heads: int
    norm_eps: float
    vocab_size: int = -1
    n_kv_heads: int | None = None
    multiple_of: int = 256
    ffn_dim_multiplier: float | None = None
    rope_theta: float = 10_000.0
    use_scaled_rope: bool = False
    rope_scaling_factor: float | None = None

    @property
    def kv_heads(self) -> int:
        """Key and value heads; as many as query heads unless attention is grouped."""
        return self.n_kv_heads or self.n_heads

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def hidden(self) -> int:
        """Width of the feed-forward block: two thirds of 4·dim, scaled, rounded up to `multiple_of`."""
        width = int(2 * (4 * self.dim) / 3)
        if self.ffn_dim_multiplier is not None:
            width = int(self.ffn_dim_multiplier * width)
        return self.multiple_of * math.ceil(width / self.multiple_of)


def read_params(path: Path) -> Params:
    """Read and check `params.json`. Raises ConversionError naming every field that is missing or can't be right."""
    if not path.is_file():
        raise ConversionError(f"{path} is missing; it comes with the checkpoint and says how large the model is")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConversionError(f"{path} is no JSON: {error}") from None
    if not isinstance(record, dict):
        raise ConversionError(f"{path}: expected an object, found {type(record).__name__}")
    known = {field.name for field in fields(Params)}
    if unknown := sorted(record.keys() - known - _HARMLESS):
        raise ConversionError(
            f"{path}: {', '.join(unknown)} is not known for LLaMA 1 to 3.3 text models in 16 or 32 bits; "
            "quantized, mixture-of-experts and vision checkpoints can't be converted"
        )
    faults = _faults(record)
    if faults:
        raise ConversionError(f"{path}: {'; '.join(faults)}")
    return Params(**{name: value for name, value in record.items() if name in known})


def _faults(record: dict[str, Any]) -> list[str]:
    faults = [f"{name} is missing" for name in ("dim", "n_layers", "n_heads", "norm_eps") if name not in record]
    for name in ("dim", "n_layers", "n_heads", "n_kv_heads", "multiple_of"):
        value = record.get(name, 1)
        optional = name == "n_kv_heads" and value is None
        if not optional and (type(value) is not int or not 1 <= value <= 1_000_000):
            faults.append(f"{name} is {value!r}, expected a whole number from 1")
    for name in ("norm_eps", "ffn_dim_multiplier", "rope_theta", "rope_scaling_factor"):
        value = record.get(name)
        if value is not None and (type(value) not in (int, float) or not 0 < value < 1e12):
            faults.append(f"{name} is {value!r}, expected a number over 0")
    if "norm_eps" in record and record["norm_eps"] is None:
        faults.append("norm_eps is null, expected a number over 0")
    vocab_size = record.get("vocab_size", -1)
    if type(vocab_size) is not int or not (vocab_size == -1 or 1 <= vocab_size <= 10_000_000):
        faults.append(f"vocab_size is {vocab_size!r}, expected -1 (the tokenizer decides) or a whole number from 1")
    if type(record.get("use_scaled_rope", False)) is not bool:
        faults.append(f"use_scaled_rope is {record['use_scaled_rope']!r}, expected true or false")
    if not faults:
        heads, kv_heads = record["n_heads"], record.get("n_kv_heads") or record["n_heads"]
        if record["dim"] % (2 * heads):
            faults.append(f"dim {record['dim']} can't be divided into {heads} heads of even width")
        if heads % kv_heads:
            faults.append(f"n_heads {heads} is no multiple of n_kv_heads {kv_heads}")
    return faults
