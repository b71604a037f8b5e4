"""An adapter from wherever it is: a folder, an archive, or the https URL of an archive.

`AdapterStore` turns a name into a verified adapter, for strangers' requests and, with `trusted`, for what the operator
names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alpaca.adapter.ancestry import Ancestor, asked_together, file_sha256
from alpaca.adapter.card import CARD, Card, check_special_tokens
from alpaca.adapter.folder import WEIGHTS, AdapterFiles, BaseShape, Stamp, check_there, parts, stamp, verify_files
from alpaca.cancellation import NEVER, Cancellation
from alpaca.errors import AdapterChanged, AdapterNotFound, AlpacaError, DownloadRefused, DownloadsBusy
from alpaca.prompts.find import template_from_card
from alpaca.prompts.template import Template
from alpaca.serving.cache_folder import CacheFolder, Hold, default_cache
from alpaca.serving.composition import called
from alpaca.serving.download import Limits
from alpaca.serving.flights import Crowded, Flights
from alpaca.serving.roots import ARCHIVES, Root, not_there
from alpaca.words import joined

MAX_SOURCE = 2048  # characters
REMEMBERED = 256
DOWNLOADS = 4  # at the same time, and as many requests may wait for them; the rest is told at once
READS = 8  # of folders and archives on disk, at the same time


def tuned_here(project: Path) -> Path | None:
    """The adapter that finetune.py leaves in `project` unless told otherwise, where nothing else was asked for.

    A COG_WEIGHTS that is set, even to nothing, is an answer: then there is no default.
    """
    folder = project / "lora-alpaca"
    if "COG_WEIGHTS" in os.environ or not (folder / CARD).is_file():
        return None
    print("adapter: lora-alpaca, because it is there and COG_WEIGHTS is not set (COG_WEIGHTS= serves the base alone)")
    return folder


def check_given(source: str | Path, roots: Sequence[Path]) -> None:
    """Raise AdapterNotFound, with what there is, where nothing is at the operator's `source`; its files are not read.

    It takes no time, so that a slip of the pen is told before a base is loaded.
    """
    name = str(source)
    check_source(name)
    if is_url(name):
        return
    places = [Path(os.path.expanduser(name)), *(place for root in roots if (place := Root.of(root).place(name)))]
    place = next((place for place in places if os.path.exists(place)), None)
    if place is None:
        raise not_there(called(name), [Root.of(root) for root in roots])
    if place.is_dir():
        check_there(place, called(name))


def is_url(source: str) -> bool:
    """Whether `source` names no path. Raises DownloadRefused for data: and file: URLs."""
    scheme = source[:5].lower()
    if scheme in ("data:", "file:"):
        raise DownloadRefused(f"an adapter given as a {scheme} URL; give a path or an https:// URL")
    return "://" in source


@dataclass(frozen=True)
class Adapter:
    """An adapter whose files fit the base; its tensors are read when it is put to use.

    Its files stay in the cache for as long as this object lives.
    """

    name: str  # for logs and messages: the source without what may be secret
    digest: str  # 32 hex digits over the contents of its files, the card included
    files: AdapterFiles  # its card without template and what only readers need
    template: Template | None  # the one it was trained with; None without a card
    hold: Hold | None = field(default=None, repr=False, compare=False)
    weights_sha256: str = ""
    beside: tuple[Ancestor, ...] = ()  # the adapters that it was trained beside, and answers together with


@dataclass(frozen=True)
class _Found:
    """What is remembered of a source, as long as the files that were `watched` look the same."""

    adapter: Adapter  # without its hold
    watched: tuple[Path, ...]
    stamp: Stamp


class AdapterStore:
    """Turns names into verified adapters, for one base. Threads may share it; the same source is fetched once."""

    def __init__(
        self,
        base: Path,
        tokenizer: Any,
        *,
        roots: Sequence[Path] = (),
        cache_dir: Path | None = None,
        max_bytes: int | None = None,
        limits: Limits | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        """`roots`: where anyone may name adapters, as Root.of reads it. `max_bytes` bounds the cache; None is
        ALPACA_CACHE_GB's."""
        self.base = BaseShape(base)
        self._tokenizer = tokenizer
        self._roots = tuple(map(Root.of, roots))
        self._cache = CacheFolder(cache_dir or default_cache(), max_bytes)
        self._limits = limits or Limits()
        self._say = say
        self._remembered: OrderedDict[tuple[str, str], _Found] = OrderedDict()
        self._noticed: set[str] = set()  # digests of adapters that were asked for without those they belong to
        self._lock = threading.Lock()
        self._downloads = Flights[Adapter]("adapter-download", threads=DOWNLOADS, waiting=DOWNLOADS)
        self._reads = Flights[Adapter]("adapter-store", threads=READS)

    def find(self, source: str, *, trusted: bool = False, cancellation: Cancellation = NEVER) -> Adapter:
        """The adapter that `source` names: a folder or archive under a root, or the https URL of an archive.

        Blocks, for as long as a download takes. With `trusted` (the operator's word) a path may lie anywhere. Raises
        AdapterNotFound, DownloadRefused, DownloadsBusy, BadArchive, BadAdapter, WrongBase, BadTemplate, CacheFull, or
        AdapterChanged where the files changed while they were read; and Cancelled as soon as `cancellation` is
        requested, whoever else waits for the same adapter.
        """
        check_source(source)
        place = source if is_url(source) else self._path(source, trusted)
        key = (source, str(place))
        if (known := self._known(key)) is not None:
            return known
        flights = self._reads if isinstance(place, Path) else self._downloads
        try:
            return flights.wait(key, lambda wanted: self._known(key) or self._read(key, place, wanted), cancellation)
        except Crowded:
            raise DownloadsBusy(
                f"{called(source)}: {DOWNLOADS} requests wait for adapters to be downloaded already; ask again later"
            ) from None

    def notice_alone(self, adapters: Sequence[Adapter]) -> None:
        """Say once of an adapter that it was trained beside others which are not among those that answer: it is
        answered all the same, and what it says then nobody trained."""
        present = {adapter.weights_sha256 for adapter in adapters}
        for adapter in adapters:
            absent = [needed for needed in adapter.beside if needed.weights_sha256 not in present]
            if absent and adapter.digest not in self._noticed:
                self._noticed.add(adapter.digest)
                names = [needed.name for needed in absent]
                together = "+".join([*names, Path(adapter.name).name])
                lacking = joined(f"{needed.name} (weights {needed.weights_sha256[:12]})" for needed in absent)
                self._say(
                    f"warning: adapter {adapter.name} was trained beside {lacking}, and is asked for without: it was "
                    f"never trained like this. Ask for them together: {together}"
                )

    def there(self, most: int) -> list[Adapter]:
        """The adapters in folders that requests may name, at most `most`; those that can't be served are left out."""
        found: list[Adapter] = []
        for name in [name for name in self._names() if not name.endswith(ARCHIVES)][:most]:
            with contextlib.suppress(AlpacaError):
                found.append(self.find(name))
        return found

    def archives(self, most: int) -> list[str]:
        """The names of archives there, at most `most`; none of them is unpacked for this."""
        return [name for name in self._names() if name.endswith(ARCHIVES)][: max(0, most)]

    def _names(self) -> list[str]:
        return list(dict.fromkeys(name for root in self._roots for name in root.names()))

    def _path(self, source: str, trusted: bool) -> Path:
        """Where a path leads, links followed. What lies outside of the roots is answered as if it was not there."""
        if trusted and os.path.exists(path := os.path.expanduser(source)):
            return Path(os.path.realpath(path))
        for root in self._roots:
            if (place := root.place(source)) is None:
                continue
            path = os.path.realpath(place)
            # The path comes first: of what lies outside, not even the existence is looked at.
            if all(self._inside(os.path.realpath(p)) for p in (path, *parts(Path(path)))) and os.path.exists(path):
                return Path(path)
        if trusted:
            raise not_there(called(source), self._roots)
        raise AdapterNotFound(f"no adapter {called(source)!r}: neither a folder nor an archive that may be used here")

    def _inside(self, path: str) -> bool:
        return any(Path(path).is_relative_to(os.path.realpath(root.folder)) for root in self._roots)

    def _known(self, key: tuple[str, str]) -> Adapter | None:
        with self._lock:
            found = self._remembered.get(key)
            if found is None:
                return None
            self._remembered.move_to_end(key)
        adapter = self._held(found.adapter)
        return adapter if stamp(*found.watched) == found.stamp else None

    def _held(self, adapter: Adapter) -> Adapter:
        in_cache = adapter.files.folder.parent == self._cache.folder
        return dataclasses.replace(adapter, hold=self._cache.hold(adapter.files.folder) if in_cache else None)

    def _read(self, key: tuple[str, str], place: Path | str, cancellation: Cancellation) -> Adapter:
        """Fetch, verify and remember. The messages of what goes wrong call the adapter by the name that was given."""
        name = called(key[0])
        try:
            watched = () if isinstance(place, str) or place.is_dir() else (place,)
            before = stamp(*watched)
            hold = self._fetch(place, cancellation)
            folder = hold.folder if hold is not None else Path(place)
            try:
                adapter = self._verified(folder, name, hold)
            except Exception:
                if hold is not None:
                    self._cache.drop(hold)
                raise
        except AlpacaError as error:
            raise error if name in error.message else type(error)(f"{name}: {error.message}") from None
        except OSError as error:
            raise AdapterNotFound(f"{name} can't be read: {error.strerror or type(error).__name__}") from None
        seen = _Found(
            dataclasses.replace(adapter, hold=None), (*watched, *parts(folder)), (*before, *adapter.files.stamp)
        )
        with self._lock:
            self._remembered[key] = seen
            while len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)
        return adapter

    def _fetch(self, place: Path | str, cancellation: Cancellation) -> Hold | None:
        if isinstance(place, str):
            return self._cache.fetch(place, self._limits, cancellation)
        if place.is_dir():
            return None
        if not place.is_file():  # a pipe would be waited on for ever
            raise AdapterNotFound("neither a folder nor an archive")
        return self._cache.unpack(place, cancellation)

    def _verified(self, folder: Path, name: str, hold: Hold | None) -> Adapter:
        files = verify_files(folder, self.base, name=name)
        template, beside = None, tuple[Ancestor, ...]()
        if files.card is not None:
            beside = tuple(asked_together(files.card.on_top_of))
            check_special_tokens(files.card, self._tokenizer)
            template = template_from_card(files.card.template, self._tokenizer)
            # What a stranger wrote beside that may be long, and is not kept.
            slim = Card(files.card.base_model, files.card.base_fingerprint, {}, files.card.special_tokens)
            files = dataclasses.replace(files, card=slim)
        hashes = file_hashes(folder)
        if files.changed():
            raise AdapterChanged("its files were changed while they were read; ask for it again")
        digest = _digest_of(hashes)
        card = (
            f"template {template.name}" if template else "no card (alpaca.json), so only names and shapes were checked"
        )
        self._say(
            f"adapter: {name}: rank {files.spec.r} on {len(files.modules)} modules, {card}, content {digest[:12]}"
        )
        return Adapter(name, digest, files, template, hold, hashes[WEIGHTS], beside)


def check_source(source: str) -> None:
    """Raise AdapterNotFound for what can't be an adapter's name, whatever there is on disk."""
    if not isinstance(source, str) or not source.strip():
        raise AdapterNotFound("an adapter's name must be a text that is not blank")
    if len(source) > MAX_SOURCE:
        raise AdapterNotFound(f"an adapter's name has {len(source):,} characters; at most {MAX_SOURCE:,}")
    if not source.isprintable():
        raise AdapterNotFound(f"an adapter's name holds a character that can't be in one: {ascii(source)[:120]}")
    if source.startswith(("\\\\", "//")):
        raise AdapterNotFound("an adapter's name is a network path; give a path or an https:// URL")


def content_digest(folder: Path) -> str:
    """32 hex digits that stand for the contents of an adapter's files."""
    return _digest_of(file_hashes(folder))


def file_hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of each of an adapter's files that is there, by its name."""
    return {path.name: file_sha256(path) for path in parts(folder) if path.is_file()}


def _digest_of(hashes: Mapping[str, str]) -> str:
    return hashlib.sha256("".join(f"{name} {sha256}\n" for name, sha256 in hashes.items()).encode()).hexdigest()[:32]
