"""The base's own answers, kept in the cache folder: asked the same in the same words, it would say the same again.

There is a file for everything that an answer depends on but the question: the base's fingerprint and precision, the
template, the longest an answer may be. Each line is one answer with a checksum; a line that is no longer what was
written is not used. What goes wrong with the cache costs time and never a run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca.files import locked, written_aside
from alpaca.paths import cache_home
from alpaca.progress import Say
from alpaca.words import tagged

FOLDER = "own_answers"
MOST_BYTES = 64 << 20  # of a file: beyond it a run's answers replace those of earlier ones


@dataclass(frozen=True)
class OwnAnswer:
    """What the base said. `cut_off`: it had not come to an end at the limit of tokens."""

    text: str
    cut_off: bool


def cache_file(**depends_on: Any) -> Path:
    """Where the answers are that depend on this and on nothing else but the question; values are plain JSON."""
    text = json.dumps(depends_on, sort_keys=True)
    return cache_home() / FOLDER / f"{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}.jsonl"


def read_answers(path: Path, say: Say) -> dict[str, OwnAnswer]:
    """The answers in the file by their prompt's key. Lines that are damaged are left out, and it is said."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        say(tagged("warning", f"answers made before can't be read ({error.strerror}: {path}); they are made again"))
        return {}
    found = dict(entry for line in lines if (entry := _entry(line)) is not None)
    if damaged := sum(_entry(line) is None for line in lines):
        say(tagged("warning", f"{damaged} of the {len(lines)} answers in {path} are damaged; they are made again"))
    return found


def add_answers(path: Path, answers: Mapping[str, OwnAnswer], say: Say) -> None:
    """Put answers to those in the file, which is replaced as a whole. Where it can't be written, it is said."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent, lambda waited: None):
            kept = {**read_answers(path, lambda line: None), **answers}
            content = "".join(_line(key, answer) for key, answer in kept.items())
            if len(content) > MOST_BYTES:
                content = "".join(_line(key, answer) for key, answer in answers.items())
            with written_aside(path) as aside:
                aside.write_text(content, encoding="ascii")
    except OSError as error:
        say(tagged("warning", f"these answers are not kept for the next run ({error.strerror}: {path})"))


def _line(key: str, answer: OwnAnswer) -> str:
    said = {"prompt": key, "answer": answer.text, "cut_off": answer.cut_off}
    return json.dumps(said | {"check": _check(said)}) + "\n"


def _entry(line: bytes) -> tuple[str, OwnAnswer] | None:
    """None for a line that is not as it was written."""
    try:
        said = json.loads(line)
        check = said.pop("check")
        if check != _check(said):
            return None
        return said["prompt"], OwnAnswer(said["answer"], said["cut_off"])
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return None


def _check(said: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=8).hexdigest()
