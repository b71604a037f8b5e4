"""The general set in two parts that never meet: rows that training may mix in, and rows that measure forgetting."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from alpaca.paths import DATA
from alpaca.prompts.example import Example

SHIPPED = DATA / "general.jsonl"
ONE_IN = 3  # this share of the rows measures; the others may be trained on


def split_general(rows: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """(rows for replay, rows for measuring), each in the order given.

    A hash of what is asked decides, not the answer and not the other rows: a row keeps its side when the file grows,
    when its answer is written anew (by the base itself, say), and copies of a row are always on the same side.
    """
    for_replay: list[Example] = []
    for_measuring: list[Example] = []
    for row in rows:
        (for_measuring if measures(row) else for_replay).append(row)
    return for_replay, for_measuring


def measures(row: Example) -> bool:
    """Whether the row is kept for measuring and must not be trained on."""
    asked = [_plain(row.system), *([_plain(text) for text in turn.given] for turn in row.turns)]
    digest = hashlib.blake2b(json.dumps(asked).encode("ascii"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % ONE_IN == 0


def _plain(text: str) -> str:
    """Small letters and single spaces: spellings that are the same question count as one."""
    return " ".join(text.casefold().split())
