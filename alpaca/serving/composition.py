"""Which adapters make an answer together, each at its own strength.

A client names them in one text: `insurance`, `insurance:0.7+polite:0.5`, or a JSON list of objects with a name or a
url, and perhaps a scale.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca.errors import BadComposition, OutOfRange
from alpaca.words import one_line, shown, shown_url, type_name

BASE_ALONE = "none"
"""The name by which a request asks for the base without any adapter."""
MAX_ADAPTERS = 8
MAX_SOURCE_CHARS = 2048
MAX_LIST_CHARS = 131_072  # as many URLs as may be, as long as they may be, written as JSON in escapes
SCALES = (0.0, 4.0)
LIST = 'a JSON list, such as [{"name": "…", "scale": 0.7}, {"url": "https://…"}]'
_URL = re.compile(r"(data|file):|.*://", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Part:
    """One adapter of an answer. Raises OutOfRange for a name or a strength that is out of bounds."""

    source: str | Path
    """A folder or archive in the server's adapter folder, or an https URL. Within this process also a path, which may
    lie anywhere: clients' inputs are texts."""
    scale: float = 1.0
    """Its strength, times the request's adapter_scale: 0 leaves it out, 1 is as trained."""

    def __post_init__(self) -> None:
        if isinstance(self.source, str) and not 1 <= len(self.source) <= MAX_SOURCE_CHARS:
            raise OutOfRange(f"adapter has {len(self.source):,} characters: it must have 1 to {MAX_SOURCE_CHARS:,}")
        low, high = SCALES
        number = isinstance(self.scale, int | float) and not isinstance(self.scale, bool)
        if not number or not low <= self.scale <= high:
            given = one_line(str(self.scale)) if number else type_name(self.scale)
            raise OutOfRange(f"adapter: the strength of {self.name} is {given}: it must be from {low:g} to {high:g}")

    @property
    def name(self) -> str:
        """For messages: on one line, without what may be secret."""
        return shown(called(str(self.source)))


@dataclass(frozen=True)
class Composition:
    """The adapters of an answer, in any order; without any it is the base alone. Raises BadComposition."""

    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        if len(self.parts) > MAX_ADAPTERS:
            raise BadComposition(f"adapter names {len(self.parts)} adapters: at most {MAX_ADAPTERS} make an answer")
        seen: set[str | Path] = set()
        for part in self.parts:
            if part.source in seen:
                raise BadComposition(f"adapter names {part.name} twice: name it once, with one strength")
            seen.add(part.source)


def parse_composition(text: str) -> Composition:
    """Read the input `adapter`. Raises BadComposition or OutOfRange, which say what is wrong with it."""
    if text == BASE_ALONE:
        return Composition()
    if len(text) > MAX_LIST_CHARS:
        raise OutOfRange(f"adapter has {len(text):,} characters: it must have 1 to {MAX_LIST_CHARS:,}")
    if text.lstrip().startswith("["):
        return Composition(tuple(_listed(text)))
    if _URL.match(text):
        if "+" in text.partition("://")[0]:
            raise BadComposition(f"adapter joins names and a URL with +: write them as {LIST}")
        return Composition((Part(text),))
    if "+" not in text and ":" not in text:
        return Composition((Part(text),))
    pieces = text.split("+")
    if len(pieces) > MAX_ADAPTERS:
        raise BadComposition(f"adapter names {len(pieces)} adapters: at most {MAX_ADAPTERS} make an answer")
    return Composition(tuple(_named(piece.strip(), text) for piece in pieces))


def called(source: str) -> str:
    """How logs and messages call a source: without query and user name, at most 120 characters."""
    name = shown_url(source) if "://" in source else source
    return name if len(name) <= 120 else f"{name[:119]}…"


def _named(piece: str, text: str) -> Part:
    """`insurance` or `insurance:0.7`."""
    name, _, strength = piece.rpartition(":") if ":" in piece else (piece, "", "1")
    name = name.rstrip()
    if not name:
        raise BadComposition(f"adapter is {shown(text)!r}: a name is missing; write name:strength+name:strength")
    if name == BASE_ALONE:
        raise BadComposition(f"adapter is {shown(text)!r}: {BASE_ALONE} is the base alone, which stands alone")
    try:
        return Part(name, float(strength))
    except ValueError:
        raise BadComposition(
            f"adapter is {shown(text)!r}: the strength of {shown(called(name))} is {shown(strength)!r}, which is no "
            f"number; a name that itself holds + or : is given in {LIST}"
        ) from None


def _listed(text: str) -> Iterator[Part]:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadComposition(f"adapter begins with [ and is no valid JSON ({error}): give {LIST}") from None
    if not entries:
        raise BadComposition(f"adapter is an empty list: name an adapter, or give {BASE_ALONE} for the base alone")
    if len(entries) > MAX_ADAPTERS:
        raise BadComposition(f"adapter names {len(entries)} adapters: at most {MAX_ADAPTERS} make an answer")
    for number, entry in enumerate(entries, 1):
        yield _entry(number, entry)


def _entry(number: int, entry: Any) -> Part:
    """`{"name": …, "scale": …}` or `{"url": …, "scale": …}`."""
    keys = set(entry) if isinstance(entry, dict) else set()
    if len(keys & {"name", "url"}) != 1 or keys - {"name", "url", "scale"}:
        raise BadComposition(
            f"adapter, entry {number}: it must hold a name or a url, perhaps a scale, and nothing else"
        )
    kind = "url" if "url" in entry else "name"
    source = entry[kind]
    if not isinstance(source, str) or bool(_URL.match(source)) != (kind == "url") or source == BASE_ALONE:
        what = (
            "a text that begins with https://"
            if kind == "url"
            else f"an adapter's name, neither a URL nor {BASE_ALONE}"
        )
        raise BadComposition(f"adapter, entry {number}: {kind} must be {what}")
    return Part(source, entry.get("scale", 1.0))
