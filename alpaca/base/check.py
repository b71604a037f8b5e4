"""What a base's folder must hold, checked from the headers of its files before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

from alpaca.base.headers import read_config, tensor_entries, weight_files
from alpaca.errors import BadBase

HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja", "*.txt"]


def check_base(folder: Path) -> None:
    """Raise BadBase unless `folder` holds a configuration, a tokenizer and whole safetensors weights, all shards there.

    The weights' headers are read and held against the files' sizes: a copy that was cut short is found before it is
    loaded.
    """
    read_config(folder)
    if not weight_files(folder):
        pickled = [f.name for f in folder.glob("*.bin")]
        hint = f" ({', '.join(pickled)} is pickled, which can run code: convert it first)" if pickled else ""
        raise BadBase(f"{folder} has no *.safetensors weights{hint}")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise BadBase(f"{folder} has no tokenizer (tokenizer.json or tokenizer.model)")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BadBase(f"{index} is no index of shards: {error!r}") from None
        missing = sorted(s for s in shards if not (folder / s).is_file())
        if missing:
            raise BadBase(f"{folder} lacks {len(missing)} of {len(shards)} shards: {', '.join(missing[:3])}")
    for _ in tensor_entries(folder):  # holds each against the size of its file
        pass
