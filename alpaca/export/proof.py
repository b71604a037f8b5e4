"""The proof: what the model answered here, before it was exported, in a file that goes with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alpaca import __version__
from alpaca.errors import CheckUnavailable
from alpaca.files import written_aside

FILE = "proof.json"
FORMAT = 1


@dataclass(frozen=True)
class Answered:
    """A question and its greedy answer here.

    `prompt`: the ids that were sent. `tokens`: the answer's ids, the end included where it ended (`ended`).
    `logprobs`: of each of them. `margins`: how much more likely each was than the second choice, in nats. `pieces`: the
    text of each token, as other tools spell it. `reach`: how many characters of `text` are whole after each of them.
    `variants`: the first token, with its log-probability, of the same model with a known fault, which tells later what
    is wrong; only some of the answers have them.
    """

    kind: str
    messages: list[dict[str, str]]
    most: int
    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]
    margins: list[float]
    pieces: list[str]
    reach: list[int]
    text: str
    ended: bool
    variants: dict[str, tuple[int, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Proof:
    """Everything that `check` needs to know of an export.

    `what`: the word of the command. `files`: what is checked, by role, relative to the folder. `precision`: how the
    weights are stored. `here`: how the answers were made. `loss`: mean loss per token of rows' own answers here, None
    without such rows. `references`: prompt and answer ids of these.
    """

    what: str
    name: str
    files: dict[str, str]
    precision: str
    base: str
    fingerprint: str
    adapters: dict[str, float]
    template: str
    jinja: str
    ends: list[int]
    control: list[int]
    here: str
    questions_from: str
    answers: list[Answered]
    loss: float | None = None
    references: list[tuple[list[int], list[int]]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    """What checks found: see alpaca/export/agreement.py."""


def plain(text: str) -> str:
    """A text without the marks for half characters, which every tool writes in its own way."""
    return text.replace("\ufffd", "")


def save_proofs(folder: Path, proofs: Sequence[Proof]) -> None:
    """Write proof.json, aside first."""
    record = {"format": FORMAT, "alpaca_version": __version__, "models": [asdict(proof) for proof in proofs]}
    with written_aside(folder / FILE) as aside:
        aside.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_proofs(folder: Path) -> list[Proof]:
    """The proofs in the folder of an export, one for each model in it. Raises CheckUnavailable where there are none
    that this version reads."""
    path = folder / FILE
    if not path.is_file():
        raise CheckUnavailable(f"{folder} has no {FILE}: it was not made by `python -m alpaca.export`")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise CheckUnavailable(f"{path} has format {record['format']}; this version reads format {FORMAT}")
        if not record["models"]:
            raise CheckUnavailable(f"{path} names no model")
        return [_proof(model) for model in record["models"]]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckUnavailable(f"{path} can't be read: {type(error).__name__}: {error}") from None


def _proof(record: dict[str, Any]) -> Proof:
    return Proof(answers=[Answered(**answer) for answer in record.pop("answers")], **record)
