"""A Hugging Face folder of a model: weights, settings and tokenizer, as every tool looks for them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpaca.convert.safetensors_writer import TensorPlan, shard_names, split_plan, write_index, write_shard
from alpaca.progress import progress

if TYPE_CHECKING:
    import torch

SHARD = 5_000_000_000
STORED = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
TOKENIZER = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt",
)  # fmt: skip
TEMPLATE = "chat_template.jinja"


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


def write_settings(base: Path, tokenizer: Any, ends: Sequence[int], precision: str, folder: Path) -> None:
    """config.json, the base's with the dtype in both spellings, and generation_config.json with every turn end."""
    named = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision]
    _write(folder / "config.json", _read(base / "config.json") | {"dtype": named, "torch_dtype": named})
    path = base / "generation_config.json"
    generation = _read(path) if path.is_file() else {}
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
        config = _read(folder / "tokenizer_config.json")
        _write(folder / "tokenizer_config.json", config | {"chat_template": jinja})
        (folder / TEMPLATE).write_text(jinja, encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
