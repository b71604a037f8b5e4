"""What is asked, from a file: a line each, or JSON Lines."""

from __future__ import annotations

import json
from pathlib import Path

from alpaca.errors import DataNotFound, UnsupportedFile


def read_prompts(path: Path) -> list[tuple[str, str]]:
    """(prompt, input) of each line that is not blank: plain text, or JSON with instruction and input in a .jsonl."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataNotFound(f"there is no file {path}") from None
    except UnicodeDecodeError as error:
        raise UnsupportedFile(f"{path} is not UTF-8 (byte {error.start})") from None
    if path.suffix != ".jsonl":
        return [(line, "") for line in lines if line.strip()]
    prompts = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
                prompts.append((str(row["instruction"]), str(row.get("input") or "")))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UnsupportedFile(f"{path}, line {number}: no JSON object with an instruction") from None
    return prompts
