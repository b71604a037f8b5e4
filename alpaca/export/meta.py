"""`meta`: consolidated.00.pth, params.json and tokenizer.model, as the tools of the first hour read them.

The inverse of alpaca/convert: what was converted from Meta's format gets its tensors back, byte for byte.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpaca.base.headers import HEAD
from alpaca.convert.layout import Mapping, mappings
from alpaca.convert.params import Params
from alpaca.convert.rotary import halves_to_interleaved
from alpaca.errors import ExportRefused
from alpaca.export.hf_folder import in_dtype, stored_as
from alpaca.export.leaving import Leaving
from alpaca.export.rope import rope_settings
from alpaca.export.weights import MergedWeights
from alpaca.progress import progress

if TYPE_CHECKING:
    import torch

WEIGHTS, PARAMS, TOKENIZER = "consolidated.00.pth", "params.json", "tokenizer.model"
ASIDE = "tensors.aside"
_MULTIPLES = (256, 1024, 4096)
_MULTIPLIERS = (None, 1.3, 1.2, 1.5, 1.4, 1.0)


def params_of(config: dict[str, Any]) -> Params:
    """params.json of a base. Raises ExportRefused where Meta's format has no place for what the base is."""
    if config.get("model_type") != "llama":
        raise ExportRefused(f"the base is a {config.get('model_type')} model; Meta's format holds LLaMA models only")
    dim, heads = config["hidden_size"], config["num_attention_heads"]
    if (config.get("head_dim") or dim // heads) * heads != dim:
        raise ExportRefused(
            f"the base's heads are {config['head_dim']} wide; Meta's format has them dim / n_heads wide"
        )
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise ExportRefused("the base has biases in its layers, which Meta's format has no place for")
    rope = rope_settings(config)
    kv = config.get("num_key_value_heads") or heads
    multiple, multiplier = _feed_forward(dim, config["intermediate_size"])
    scaled = rope["rope_type"] == "llama3"
    return Params(
        dim=dim, n_layers=config["num_hidden_layers"], n_heads=heads, n_kv_heads=None if kv == heads else kv,
        norm_eps=config["rms_norm_eps"], vocab_size=config["vocab_size"], multiple_of=multiple,
        ffn_dim_multiplier=multiplier, rope_theta=rope["rope_theta"], use_scaled_rope=scaled,
        rope_scaling_factor=rope.get("factor") if scaled else None,
    )  # fmt: skip


def _feed_forward(dim: int, hidden: int) -> tuple[int, float | None]:
    """`multiple_of` and `ffn_dim_multiplier` that lead to the width `hidden`, a release's own if possible."""

    def leads(multiple: int, multiplier: float | None) -> bool:
        return Params(dim, 1, 1, 1e-5, multiple_of=multiple, ffn_dim_multiplier=multiplier).hidden == hidden

    known = [(multiple, multiplier) for multiplier in _MULTIPLIERS for multiple in _MULTIPLES]
    for multiple, multiplier in known:
        if leads(multiple, multiplier):
            return multiple, multiplier
    multiple = next(size for size in (256, 128, 64, 32, 16, 8, 4, 2, 1) if hidden % size == 0)
    multiplier = (hidden - multiple // 2 + 0.5) / int(8 * dim / 3)
    if not leads(multiple, multiplier):
        raise ExportRefused(f"no ffn_dim_multiplier leads from dim {dim} to the base's intermediate_size {hidden}")
    return multiple, multiplier


def write_meta(leaving: Leaving, folder: Path, precision: str) -> None:
    """Write the folder. A tied head is named twice, as in Llama 3.2's files: Meta's own code looks for it."""
    import torch

    weights = leaving.weights
    params = params_of(weights.config)
    table = mappings(params, params.vocab_size, tied=HEAD not in weights.entries, embedding_cut=1)
    if unknown := sorted(weights.entries.keys() - {mapping.target for mapping in table}):
        raise ExportRefused(f"the base has a tensor {unknown[0]!r}, which Meta's format has no place for")
    aside = folder / ASIDE
    with progress(
        f"writing {leaving.name}", sum(entry.numel for entry in weights.entries.values()), "weight"
    ) as update:
        kinds = _write_aside(weights, table, aside, precision, update)
    tensors = dict(_mapped(table, kinds, aside))
    tensors.setdefault("output.weight", tensors["tok_embeddings.weight"])
    torch.save(tensors, folder / WEIGHTS)
    del tensors
    aside.unlink()
    stated = {name: value for name, value in asdict(params).items() if value is not None and value is not False}
    (folder / PARAMS).write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")
    if (leaving.base / TOKENIZER).is_file():
        shutil.copyfile(leaving.base / TOKENIZER, folder / TOKENIZER)


def _write_aside(
    weights: MergedWeights, table: list[Mapping], aside: Path, precision: str, update: Callable[[int], None]
) -> list[torch.dtype]:
    """Put the tensors' bytes one after the other into a file: torch.save wants all of them at once, and memory need not
    hold them. Returns their dtypes."""
    import torch

    kinds = []
    with aside.open("wb") as file:
        for mapping in table:
            tensor = weights.tensor(mapping.target)
            if mapping.rotary_heads:
                tensor = halves_to_interleaved(tensor, mapping.rotary_heads)
            stored = in_dtype(mapping.target, tensor, stored_as(weights, mapping.target, precision)).contiguous()
            file.write(stored.view(torch.uint8).numpy().data)
            kinds.append(stored.dtype)
            update(stored.numel())
    return kinds


def _mapped(table: list[Mapping], kinds: list[torch.dtype], aside: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Meta's names with their tensors, each mapped by itself: torch.save writes all of what lies behind a tensor."""
    import numpy as np
    import torch

    start = 0
    for mapping, kind in zip(table, kinds, strict=True):
        size = math.prod(mapping.shape) * kind.itemsize
        content = np.memmap(aside, np.uint8, "c", start, (size,))
        yield mapping.source, torch.from_numpy(content).view(kind).reshape(mapping.shape)
        start += size
