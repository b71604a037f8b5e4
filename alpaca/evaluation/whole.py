"""Which folder holds a model all of whose weights were tuned; no library is imported for it."""

from __future__ import annotations

from pathlib import Path

from alpaca.adapter.card import CARD
from alpaca.adapter.lora_config import CONFIG


def is_whole(folder: Path) -> bool:
    """Whether a fine-tune made the model in `folder`, weights and all."""
    return (folder / "config.json").is_file() and (folder / CARD).is_file() and not (folder / CONFIG).is_file()
