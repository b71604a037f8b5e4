"""The rows that a report rests on: the run's own held-out rows, general rows, probes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alpaca.adapter.card import Card
from alpaca.data.columns import parse_columns
from alpaca.data.general import SHIPPED, split_general
from alpaca.data.reader import read_examples
from alpaca.data.report import Dataset
from alpaca.data.split import EXACT, split
from alpaca.errors import AlpacaError, NoRowsLeft
from alpaca.evaluation.probes import KINDS, Probe, read_probes
from alpaca.paths import DATA
from alpaca.prompts.example import Example

PROBES = DATA / "probes.jsonl"


@dataclass(frozen=True)
class Domain:
    """The rows trained on and those held out, each in the order in which a smaller budget takes them."""

    source: str = ""
    train: list[Example] = field(default_factory=list)
    held_out: list[Example] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class General:
    """`measuring`: rows that are never trained on; `other`: the rest, for the frequency of words."""

    source: str
    measuring: list[Example]
    other: list[Example]
    notes: list[str] = field(default_factory=list)


def find_domain(card: Card | None, data_path: str | None) -> Domain:
    """The rows behind an adapter, split as its run did.

    `data_path`: where the rows are; None looks for the file that the card names, in the working folder and in data/.
    Another file than the card's is taken whole as held out. Raises the reader's errors for a path that was given.
    """
    if data_path is None:
        return _domain_of_card(card)
    dataset = _read_as_trained(card, data_path)
    name = Path(data_path).name
    if card is None:
        note = f"The adapter has no card, so all {len(dataset.examples)} rows of {name} count as held out."
        return Domain(name, [], spread(dataset.examples), [f"{note} If it was trained on them, it looks too good."])
    if dataset.sha256 != card.data.get("sha256"):
        note = f"{name} is not the data that was trained on, or it has changed since; all its rows count as held out."
        return Domain(name, [], spread(dataset.examples), [f"{note} If some were trained on, it looks too good."])
    return _split_as_trained(card, dataset, name)


def _read_as_trained(card: Card | None, path: str) -> Dataset:
    """The rows, read with the settings of the run where there is a card."""
    settings = card.settings if card else {}
    columns = parse_columns(str(settings.get("columns") or ""))
    return read_examples(path, columns=columns, skip_bad_rows=bool(settings.get("skip_bad_rows")))


def _domain_of_card(card: Card | None) -> Domain:
    if card is None:
        return Domain(notes=["The adapter has no card that would name its data; give it with --data_path."])
    name = str(card.data.get("source", ""))
    for folder in (Path(), DATA):
        path = folder / name
        if not name or not path.is_file():
            continue
        try:
            dataset = _read_as_trained(card, str(path))
        except AlpacaError:
            continue
        if dataset.sha256 == card.data.get("sha256"):
            return _split_as_trained(card, dataset, name)
    why = f"The data it was trained on ({name or 'not named'}) is not here, or has changed since"
    return Domain(name, notes=[f"{why}; give it with --data_path."])


def _split_as_trained(card: Card, dataset: Dataset, name: str) -> Domain:
    size, seed = card.settings.get("val_set_size"), card.settings.get("seed")
    if not isinstance(seed, int) or not isinstance(size, int | float | None):
        return Domain(name, notes=["The card does not say which rows were held out."])
    parts = split(dataset.examples, size, seed, str(card.settings.get("split", EXACT)))
    notes = []
    if not parts.validation:
        notes = ["The run held no rows out (val_set_size), so nothing can be said about new ones."]
    if parts.near_trained:
        notes = [f"{parts.near_trained} of the rows trained on nearly copy held-out ones, so the gain looks too large."]
    return Domain(name, parts.train, spread(parts.validation), notes)


def find_general(path: Path, domain: Sequence[Example], replayed: str = "") -> General:
    """General rows for measuring: those that replay never takes, and none of `domain`, the rows trained on.

    `replayed`: the name of the file that the run mixed rows in from. Raises the reader's errors, NoRowsLeft where no
    row is left.
    """
    other, measuring = split_general(read_examples(str(path)).examples)
    trained = {question(example) for example in domain}
    kept = [row for row in measuring if question(row) not in trained]
    if not kept:
        raise NoRowsLeft(f"{path}: none of its {len(other) + len(measuring)} rows can measure; give a larger file")
    notes = []
    if len(kept) < len(measuring):
        notes = [f"{len(measuring) - len(kept)} general rows were in the training data and are left out."]
    if replayed == path.name and not (SHIPPED.is_file() and path.samefile(SHIPPED)):
        notes.append(f"The run may have mixed in these very rows of {path.name}: then it looks too good.")
    return General(path.name, spread(kept), other, notes)


def replayed_file(card: Card | None) -> str:
    """The name of the file that the run mixed general rows in from; "" for none."""
    replay = card.data.get("replay") if card is not None else None
    return str(replay.get("source", "")) if isinstance(replay, dict) else ""


def question(example: Example) -> str:
    """What a row asks, in small letters and single spaces."""
    return " ".join(" ".join(f"{turn.instruction} {turn.input}" for turn in example.turns).casefold().split())


def spread(examples: Iterable[Example]) -> list[Example]:
    """The rows in an order that has nothing to do with that of the file, and is the same each time."""
    return sorted(examples, key=lambda example: hashlib.blake2b(example.key().encode(), digest_size=8).digest())


def find_probes(path: Path) -> list[Probe]:
    """The probes, the kinds in turn, so that the first ones hold some of each. Raises the reader's errors."""
    by_kind = {kind: [probe for probe in read_probes(path) if probe.kind == kind] for kind in KINDS}
    places = [
        ((number + 0.5) / len(probes), kind, probe)
        for kind, probes in by_kind.items()
        for number, probe in enumerate(probes)
    ]
    return [probe for _, _, probe in sorted(places, key=lambda place: place[:2])]
