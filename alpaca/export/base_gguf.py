"""A whole model as one GGUF file: what is exported as `gguf`, and the base that an adapter's file is asked on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alpaca.base.headers import embedding_rows
from alpaca.base.load import load_tokenizer
from alpaca.export.gguf_file import GgufModel, plan_file, write_file
from alpaca.export.gguf_tensors import Stored, architecture
from alpaca.export.gguf_vocabulary import vocabulary
from alpaca.export.leaving import Leaving
from alpaca.export.licence import licence_of
from alpaca.export.weights import MergedWeights
from alpaca.progress import progress


def gguf_model(leaving: Leaving) -> GgufModel:
    """What the file says beside the weights. Raises ExportRefused where a GGUF file has no place for the base."""
    config = leaving.weights.config
    architecture(config)
    rows = embedding_rows(leaving.base, len(leaving.tokenizer))
    found = vocabulary(leaving.tokenizer, rows, leaving.ends)
    return GgufModel(config, found, leaving.jinja, leaving.name, licence_of(leaving.base), leaving.base.name)


def planned(leaving: Leaving, wanted: str) -> list[Stored]:
    """The tensors of a file of type `wanted`, in the order of writing."""
    return plan_file(gguf_model(leaving), leaving.weights.shapes, wanted)


def write_gguf(leaving: Leaving, path: Path, wanted: str) -> None:
    """Write the merged model."""
    _write(gguf_model(leaving), leaving.weights, path, wanted)


def write_base(base: Path, jinja: str, ends: Sequence[int], path: Path) -> None:
    """Write the base alone in F32."""
    tokenizer: Any = load_tokenizer(base)
    weights = MergedWeights(base)
    rows = embedding_rows(base, len(tokenizer))
    model = GgufModel(weights.config, vocabulary(tokenizer, rows, tuple(ends)), jinja, base.name)
    _write(model, weights, path, "F32")


def _write(model: GgufModel, weights: MergedWeights, path: Path, wanted: str) -> None:
    plan = plan_file(model, weights.shapes, wanted)
    with progress(f"writing {path.name}", sum(stored.n_bytes for stored in plan)) as update:
        write_file(path, model, plan, wanted, weights.tensors([stored.source for stored in plan]), update)
