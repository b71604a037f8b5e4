"""A folder of unpacked adapters, each under the hash of its archive, kept below a size by least recent use.

Several threads and processes may share it. What holds:

- A folder under its hash is whole: it is made aside, in a hidden folder, and renamed.
- What is in use in this process is not removed. A `Hold` is use: `hold`, `fetch` and `unpack` give one, and when the
  last reference to it is gone, so is the use. It is taken under the lock under which folders are removed.
- Another process's use is seen by the folder's time, which every `hold` renews: what was just handed out there is the
  last to go here. Should it go all the same, it is renamed first and deleted under another name. A reader that has its
  files open reads on; one that has not finds nothing, never half an adapter, and asks for it again.
- The limit is never passed: where everything is in use, a new archive is refused (CacheFull). What is being downloaded
  and unpacked counts only when it is done.
- A hidden folder is locked by its process for as long as that lives. One that is not locked was left by a process
  that was killed, and is swept.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from alpaca.adapter.archive import unpack
from alpaca.cancellation import NEVER, Cancellation
from alpaca.errors import AdapterError, CacheFull, CacheUnusable, is_full_disk
from alpaca.files import is_locked, locked
from alpaca.paths import CACHE, cache_home
from alpaca.serving.download import Limits, download
from alpaca.words import shown_url

CACHE_GB = "ALPACA_CACHE_GB"
DAY = 86_400.0
HIDDEN = (".download-", ".unpack-", ".gone-")


def default_cache() -> Path:
    """Where unpacked adapters are kept: $ALPACA_CACHE, else ~/.cache/alpaca, in its folder adapters."""
    return cache_home() / "adapters"


def default_bytes() -> int:
    """How much is kept: ALPACA_CACHE_GB gigabytes, else 20. Raises AdapterError for anything else."""
    text = os.environ.get(CACHE_GB) or "20"
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size <= 1e6:
        raise AdapterError(f"{CACHE_GB} is {text[:40]!r}: a number of gigabytes above 0")
    return int(size * 1e9)


class Hold:
    """Keeps a folder of the cache from being removed for as long as this object lives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder


class CacheFolder:
    """See the top of the file. All methods block and may be called from any thread."""

    def __init__(self, folder: Path, max_bytes: int | None = None) -> None:
        """`max_bytes`: None is `default_bytes()`. Sweeps what killed processes left."""
        self.folder = folder
        self.max_bytes = default_bytes() if max_bytes is None else max_bytes
        self._holds: weakref.WeakSet[Hold] = weakref.WeakSet()
        self._lock = threading.Lock()  # between taking a hold and removing what nobody holds
        if os.access(folder, os.W_OK):
            self._sweep()

    def fetch(self, url: str, limits: Limits | None = None, cancellation: Cancellation = NEVER) -> Hold:
        """Download the archive at `url` and unpack it. Raises DownloadRefused, BadArchive, CacheFull or Cancelled."""
        limits = limits or Limits()
        with self._aside(".download-") as aside:
            archive = aside / (shown_url(url).rpartition("/")[2].strip(".")[:50] or "adapter")
            download(url, archive, replace(limits, max_bytes=min(limits.max_bytes, self.max_bytes)), cancellation)
            return self.unpack(archive, cancellation)

    def unpack(self, archive: Path, cancellation: Cancellation = NEVER) -> Hold:
        """The adapter in `archive`, unpacked unless it is there already. Raises BadArchive, CacheFull or Cancelled."""
        with archive.open("rb") as handle:
            folder = self.folder / hashlib.file_digest(handle, "sha256").hexdigest()[:32]
        if (hold := self.hold(folder)) is not None:
            return hold
        with self._aside(".unpack-") as aside:
            unpack(archive, aside, cancellation)
            with self._alone():
                if not folder.is_dir():  # another process may have been faster
                    self._make_room(_size(aside))
                    os.replace(aside, folder)
                if (hold := self.hold(folder)) is None:
                    raise CacheFull(f"{folder} was removed as soon as it was made")
                return hold

    def hold(self, folder: Path) -> Hold | None:
        """Begin to use `folder`; None where it is not there (any more)."""
        with self._lock:
            if not folder.is_dir():
                return None
            with contextlib.suppress(OSError):  # a cache that may only be read
                os.utime(folder)
            hold = Hold(folder)
            self._holds.add(hold)
        return hold

    def drop(self, hold: Hold) -> None:
        """Remove a folder that turned out to be no good, unless others use it; `hold` counts for nothing any more."""
        self._holds.discard(hold)
        with self._alone():
            self._discard(hold.folder)

    def _make_room(self, size: int) -> None:
        if size > self.max_bytes:
            raise CacheFull(f"it has {size:,} bytes; all adapters together may have {self.max_bytes:,} ({CACHE_GB})")
        kept = [(path.stat().st_mtime_ns, path, _size(path)) for path in self._whole_ones()]
        total = sum(entry[2] for entry in kept)
        for _, path, its_size in sorted(kept):
            if total + size <= self.max_bytes:
                return
            total -= its_size if self._discard(path) else 0
        if total + size > self.max_bytes:
            raise CacheFull(
                f"no room for {size:,} bytes: {total:,} of {self.max_bytes:,} ({CACHE_GB}) are in use; ask again later"
            )

    def _whole_ones(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if not path.name.startswith(".") and path.is_dir()]

    def _discard(self, folder: Path) -> bool:
        """Remove a folder that nobody here uses, at one stroke; whether it is gone."""
        gone = Path(tempfile.mkdtemp(prefix=".gone-", dir=self.folder))
        with self._lock:
            used = any(hold.folder == folder for hold in self._holds)
            if not used and folder.is_dir():
                os.replace(folder, gone / folder.name)
        shutil.rmtree(gone, ignore_errors=True)
        return not used

    def _sweep(self) -> None:
        with self._alone():
            for path in self.folder.iterdir():
                if path.name.startswith(HIDDEN) and _left_over(path):
                    shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def _aside(self, prefix: str) -> Iterator[Path]:
        """A hidden folder to work in, removed afterwards."""
        with contextlib.ExitStack() as held:
            with self._alone():
                aside = Path(tempfile.mkdtemp(prefix=prefix, dir=self.folder))
                held.enter_context(locked(aside, _wait))
                held.callback(shutil.rmtree, aside, ignore_errors=True)
            try:
                yield aside
            except OSError as error:
                if is_full_disk(error):
                    raise CacheFull(f"the disk of {self.folder} is full: {CACHE} names another one") from None
                raise

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other thread or process adds, removes or sweeps."""
        with contextlib.ExitStack() as held:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(self.folder, _wait))
            except OSError as error:
                raise CacheUnusable(
                    f"{self.folder} can't be written to ({error.strerror}); adapters are unpacked there, and {CACHE} "
                    "names another folder"
                ) from None
            yield


def _wait(seconds: float) -> None:
    """What is done under the lock of the folder takes no time to speak of."""


def _left_over(folder: Path) -> bool:
    try:
        return not is_locked(folder)
    except OSError:  # nothing is locked on this file system: only its age tells
        return time.time() - folder.stat().st_mtime > DAY


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
