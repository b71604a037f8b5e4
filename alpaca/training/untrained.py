"""Markers of a template that the base has never learnt: an adapter leaves their rows as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alpaca.base.headers import TensorEntry, tensor_entries
from alpaca.prompts.codec import Codec
from alpaca.prompts.encode import encode_examples
from alpaca.prompts.example import Example
from alpaca.prompts.template import Template
from alpaca.words import joined

FAINT = 0.25  # of the median row's norm: rows that were trained are of one size, those that never were lie far below
SAMPLE = 1024  # rows that the median is taken of
ROWS = ("embed_tokens.weight", "lm_head.weight")
DTYPES: dict[str, Any] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


def untrained_markers(base: Path, tokenizer: Any, template: Template) -> list[str]:
    """The template's control tokens whose row in the embedding or the head looks untrained, as they are spelled."""
    markers = _markers(tokenizer, template)
    faint: set[int] = set()
    for entry in tensor_entries(base):
        if entry.name.endswith(ROWS) and entry.dtype in DTYPES and len(entry.shape) == 2:
            known = [marker for marker in markers if marker < entry.shape[0]]
            every = range(0, entry.shape[0], max(1, entry.shape[0] // SAMPLE))
            usual = float(np.median(_norms(entry, every)))
            faint |= {marker for marker, norm in zip(known, _norms(entry, known), strict=True) if norm < FAINT * usual}
    return [tokenizer.convert_ids_to_tokens(marker) for marker in markers if marker in faint]


def warning(untrained: Sequence[str], template: Template) -> str:
    """What that means and what helps, for people."""
    if template.turn_end is None:
        helps = "take a chat base"
    else:
        helps = "take a chat base (its name often ends with Instruct or Chat), or --prompt_template_name alpaca"
    look = "looks" if len(untrained) == 1 else "look"
    return (
        f"{joined(untrained)} of the template {template.name} {look} untrained in this base, and an adapter does not "
        f"change that: the model may never learn where to stop. What helps: {helps}"
    )


def _markers(tokenizer: Any, template: Template) -> list[int]:
    """The control tokens in a conversation of one turn, its turn end among them, but for a BOS in front."""
    made = encode_examples(tokenizer, template, [Example.single("a", "", "b")], cutoff_len=100_000).examples
    ids = [token for example in made for token in example.input_ids]
    control = set(Codec.of(tokenizer).control.values())
    return sorted(control.intersection(ids[1:] if ids[:1] == [tokenizer.bos_token_id] else ids))


def _norms(entry: TensorEntry, rows: Sequence[int]) -> np.ndarray:
    """The norms of some rows of a matrix; only their bytes are read."""
    table: np.ndarray = np.memmap(
        entry.file, dtype=DTYPES[entry.dtype], mode="r", offset=entry.start, shape=entry.shape
    )
    taken = table[np.array(rows, dtype=np.intp)]
    if entry.dtype == "BF16":
        taken = (taken.astype(np.uint32) << 16).view(np.float32)
    norms: np.ndarray = np.linalg.norm(taken.astype(np.float64), axis=1)
    return norms
