"""`merged`: a Hugging Face folder with the adapters in the weights, written tensor by tensor."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpaca.base.headers import read_config
from alpaca.convert.safetensors_writer import TensorPlan, shard_names, split_plan, write_index, write_shard
from alpaca.errors import ExportRefused
from alpaca.export.leaving import Leaving
from alpaca.export.weights import MergedWeights
from alpaca.progress import progress

if TYPE_CHECKING:
    import torch

SHARD = 5_000_000_000
STORED = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
AS_BASE = "auto"
"""Every tensor in the dtype that it has in the base."""
TOKENIZER = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt",
)  # fmt: skip
TEMPLATE = "chat_template.jinja"


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


def write_weights(
    plans: list[TensorPlan],
    tensors: Callable[[Sequence[str]], Iterable[torch.Tensor]],
    folder: Path,
    name: str,
    shard: int = SHARD,
) -> None:
    """The planned tensors in files of at most `shard` bytes, with their index. `tensors` gives those of some names, one
    after the other; `name` is what the progress calls it."""
    shards = split_plan(plans, shard)
    names = shard_names(len(shards))
    with progress(f"writing {name}", sum(plan.n_bytes for plan in plans)) as update:
        for file, part in zip(names, shards, strict=True):
            write_shard(folder / file, part, tensors([plan.name for plan in part]), update)
    if len(names) > 1:
        write_index(folder, names, shards)


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


def write_settings(base: Path, tokenizer: Any, ends: Sequence[int], precision: str, folder: Path) -> None:
    """config.json, the base's with the dtype in both spellings, and generation_config.json with every turn end."""
    named = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision]
    _write(folder / "config.json", read_config(base) | {"dtype": named, "torch_dtype": named})
    path = base / "generation_config.json"
    generation = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "pad")}
    generation |= {name: value for name, value in ids.items() if value is not None}
    _write(folder / "generation_config.json", generation | {"eos_token_id": list(ends) if len(ends) > 1 else ends[0]})


def write_tokenizer(base: Path, tokenizer: Any, jinja: str | None, folder: Path) -> None:
    """The base's own files, with the template that the model was trained with, where old and new versions look.

    `jinja`: None where that is the base's own.
    """
    for name in (*TOKENIZER, *([TEMPLATE] if jinja is None else [])):
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    if not (folder / "tokenizer_config.json").is_file():
        tokenizer.save_pretrained(folder)
    if jinja is not None:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        _write(folder / "tokenizer_config.json", config | {"chat_template": jinja})
        (folder / TEMPLATE).write_text(jinja, encoding="utf-8")


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
