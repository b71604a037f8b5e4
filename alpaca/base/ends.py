"""The tokens that end an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alpaca.base.headers import embedding_rows


def end_ids(base: Path, tokenizer: Any, turn_end: int | None) -> tuple[int, ...]:
    """The tokens that end an answer here: EOS, `turn_end` of the template, and those that the base's settings name."""
    from transformers import GenerationConfig

    ids = [tokenizer.eos_token_id, turn_end]
    if (base / "generation_config.json").is_file():
        named = GenerationConfig.from_pretrained(str(base)).eos_token_id
        ids += named if isinstance(named, list) else [named]
    rows = embedding_rows(base, len(tokenizer))
    return tuple(dict.fromkeys(i for i in ids if i is not None and 0 <= i < rows))
