"""What an adapter was trained on top of, as its card tells it: the field `ancestor`, each with its own in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alpaca.errors import AdapterNotFound, BadAdapter
from alpaca.files import hash_file

CONTINUED = "continued"
"""The ancestor's weights were trained further: the new adapter holds what it knew."""
BESIDE = "beside"
"""The ancestor stayed as it was, and the new adapter was trained with it in effect: they answer together."""
MOST = 64  # generations that a card may tell of
MOST_CHARS = 200  # of a text in it


@dataclass(frozen=True)
class Ancestor:
    """An adapter that another was trained on top of, with what it was made of itself."""

    name: str
    """Of its folder, as a server's clients would ask for it."""
    how: str
    """CONTINUED or BESIDE."""
    weights_sha256: str
    """Of its adapter_model.safetensors."""
    base_model: str = ""
    base_fingerprint: str = ""
    data_source: str = ""
    data_sha256: str = ""
    rows: int | None = None
    """Trained on; None without a card, which leaves the rest empty as well."""
    created: str = ""
    ancestor: Ancestor | None = None

    def card(self) -> dict[str, Any]:
        """As it stands in a card."""
        return asdict(self)

    def line(self) -> str:
        """The chain in words, the nearest first."""
        data = f", trained on {self.data_source}" if self.data_source else ""
        relation = "beside" if self.how == BESIDE else "going on with"
        here = f"{relation} {self.name} (weights {self.weights_sha256[:12]}{data})"
        return here if self.ancestor is None else f"{here}, itself {self.ancestor.line()}"


def parse_ancestor(content: Mapping[str, Any], depth: int = 1) -> Ancestor | None:
    """The field `ancestor` of a card; None where it is empty. Raises BadAdapter naming what is wrong with it."""
    if not content:
        return None
    if depth > MOST:
        raise BadAdapter(f"the card's ancestor tells of more than {MOST} generations")
    texts = {key: content.get(key, "") for key in Ancestor.__annotations__ if key not in ("rows", "ancestor")}
    for key, value in texts.items():
        if not isinstance(value, str) or len(value) > MOST_CHARS or not value.isprintable():
            raise BadAdapter(f"the card's ancestor: {key} must be one line of at most {MOST_CHARS} characters")
    if texts["how"] not in (CONTINUED, BESIDE):
        raise BadAdapter(f"the card's ancestor: how is {texts['how']!r}, not {CONTINUED} or {BESIDE}")
    if not re.fullmatch(r"[0-9a-f]{64}", texts["weights_sha256"]):
        raise BadAdapter("the card's ancestor: weights_sha256 must be 64 hex digits")
    if not is_plain_name(texts["name"]):
        raise BadAdapter(f"the card's ancestor: name is {texts['name']!r}, which is no folder's name")
    rows, above = content.get("rows"), content.get("ancestor")
    if rows is not None and (not isinstance(rows, int) or isinstance(rows, bool)):
        raise BadAdapter("the card's ancestor: rows must be a number or null")
    if above is not None and not isinstance(above, dict):
        raise BadAdapter(f"the card's ancestor: its own must be an object or null, not a {type(above).__name__}")
    return Ancestor(**texts, rows=rows, ancestor=parse_ancestor(above or {}, depth + 1))


def is_plain_name(name: str) -> bool:
    """Whether it names a folder beside another, and none anywhere else."""
    return bool(name) and not name.startswith(".") and not set(name) & set("/\\\0")


def asked_together(ancestor: Ancestor | None) -> Iterator[Ancestor]:
    """The adapters that one with this `ancestor` answers together with, the nearest first.

    Whoever went on with an adapter holds its weights, and what that one was trained beside is still needed.
    """
    while ancestor is not None:
        if ancestor.how == BESIDE:
            yield ancestor
        ancestor = ancestor.ancestor


def find_together(folder: Path, weights: str, ancestor: Ancestor | None, given: Sequence[Path] = ()) -> list[Path]:
    """The folders of the adapters that the one in `folder` answers together with: among those `given`, else by name
    beside it or where one works; known by their weights, files called `weights`. Raises AdapterNotFound."""
    found = []
    for needed in asked_together(ancestor):
        places = (folder.resolve().parent / needed.name, Path(needed.name))
        there = (place for place in (*given, *places) if (place / weights).is_file())
        place = next((place for place in there if file_sha256(place / weights) == needed.weights_sha256), None)
        if place is None:
            raise AdapterNotFound(
                f"{folder} was trained beside {needed.name} and belongs together with it, and that adapter (weights "
                f"{needed.weights_sha256[:12]}) is not in {places[0]}: put its folder there"
            )
        found.append(place)
    return found


def file_sha256(path: Path) -> str:
    """64 hex digits."""
    return hash_file(path, "sha256")["sha256"]
