"""What is asked, from a file: a line each, or JSON Lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from alpaca.data.files import read_file, read_text
from alpaca.errors import DataNotFound, UnsupportedFile


def read_prompts(path: Path) -> list[tuple[str, str]]:
    """(prompt, input) of each line that is not blank: plain text, or JSON with instruction and input in a .jsonl."""
    if not path.is_file():
        raise DataNotFound(f"there is no file {path}")
    if path.suffix != ".jsonl":
        return [(line.rstrip("\r"), "") for line in read_text(path).split("\n") if line.strip()]
    prompts = []
    for number, row in read_file(path):
        asked = row.get("instruction") if isinstance(row, Mapping) else None
        if not isinstance(row, Mapping) or not isinstance(asked, str):
            raise UnsupportedFile(f"{path}, line {number}: no JSON object with an instruction")
        prompts.append((asked, str(row.get("input") or "")))
    if not prompts:
        raise UnsupportedFile(f"{path} holds no prompts")
    return prompts
