"""A base named by a URL and a checksum: downloaded once, verified, unpacked, and kept in the cache.

URL and checksum are the operator's, from the command line or the environment; a client's never come here
(`alpaca/training/job.py` refuses them). So any address is asked, plain http too: the SHA-256 decides what is taken.
``$ALPACA_CACHE/bases/<first 16 digits of the SHA-256>/`` holds

- ``llama-7b/``: the base, named after its archive. It is made aside and renamed: under its name it is whole.
- ``.sha256``: the whole hash of the archive that it came from.
- ``.archive`` and ``.archive.json``: a download that was interrupted, and what it is part of. It is gone on with.
- ``.lock``: locked by the process that fetches. Others wait for it, then use what it made.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from alpaca.base.archive import unpack_base
from alpaca.base.check import check_base
from alpaca.errors import BadBase, ChecksumMismatch, FetchFailed
from alpaca.files import hash_file, room_for
from alpaca.paths import cache_home
from alpaca.progress import LOG_SECONDS, progress, say
from alpaca.words import shown_url, size_text

CHECKSUM = "BASE_SHA256"
STALL_SECONDS = 30.0  # so long for a connection, and for each further byte
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # seconds before another try, while tries bring nothing
LEAST_GAIN = 1 << 20  # bytes that a try must bring for the pauses to begin anew
TRANSIENT = {408, 425, 429}  # statuses that may pass, and so may all from 500 on


def fetch_base(url: str) -> Path:
    """The folder of the base whose archive is at `url`. Once it is in the cache, no network is asked any more.

    The archive is a tar, plain or gzip, whose SHA-256 is the variable BASE_SHA256. Raises FetchFailed for a missing
    checksum and for trouble with server, network or disk; ChecksumMismatch; BadBase for what holds no usable base.
    """
    sha256, name = _checksum(url), _name(url)
    home = cache_home() / "bases" / sha256[:16]
    try:
        folder = _cached(home, sha256)
        if folder is None:
            home.mkdir(parents=True, exist_ok=True)
            with _alone(home):  # another process may have made it by now
                folder = _cached(home, sha256) or _make(url, sha256, home / name)
    except OSError as error:
        raise FetchFailed(f"{error.filename or home}: {error.strerror or error}") from None
    say(f"base {folder.name} is in the cache: {folder}")
    return folder


def _checksum(url: str) -> str:
    how = "64 hexadecimal digits, which `sha256sum base.tar` prints for the archive"
    wanted = os.environ.get(CHECKSUM, "").strip().lower()
    if not wanted:
        raise FetchFailed(f"{shown_url(url)} is fetched only if its SHA-256 is known: set {CHECKSUM}, {how}")
    if not re.fullmatch("[0-9a-f]{64}", wanted):
        raise FetchFailed(f"{CHECKSUM} is {wanted[:80]!r}, no SHA-256: it has {how}")
    return wanted


def _name(url: str) -> str:
    """What the base is called: the archive's name in the URL, without its ending and fit for a folder."""
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise FetchFailed(f"{shown_url(url)} is no URL that can be fetched: {error}") from None
    if not all(0 < len(label) < 64 for label in parts.raw_host.removesuffix(b".").split(b".")):
        raise FetchFailed(f"{shown_url(url)} is no URL that can be fetched: it names no host")
    last = parts.path.rstrip("/").rpartition("/")[2]
    stem = re.sub(r"(\.tar|\.tgz|\.tar\.gz)$", "", last, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem)[:64].strip(".-") or "base"


# --- cache --------------------------------------------------------------------------------------------------------
def _cached(home: Path, sha256: str) -> Path | None:
    """The base in `home`, if it came from the archive with this hash and is all there."""
    record = home / ".sha256"
    if not record.is_file() or record.read_text(encoding="utf-8", errors="replace").strip() != sha256:
        return None
    for folder in _bases_in(home):
        try:
            check_base(folder)
        except BadBase as error:
            say(f"the base in the cache is damaged ({error.message}): it is fetched again")
        else:
            return folder
    return None


def _bases_in(home: Path) -> list[Path]:
    return sorted(path for path in home.iterdir() if path.is_dir() and not path.name.startswith("."))


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """While no other process fetches into `home`. The lock dies with its process, so a killed one blocks nobody."""
    with (home / ".lock").open("a") as lock:
        started, next_line = time.monotonic(), 0.0
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waited = time.monotonic() - started
            if waited >= next_line:
                so_far = size_text(_Part(home / ".archive").length)
                say(f"another process fetches this base into {home} ({so_far} so far): waiting for it, {waited:.0f} s")
                next_line = waited + LOG_SECONDS
            time.sleep(0.2)
        yield


def _make(url: str, sha256: str, folder: Path) -> Path:
    """Fetch, verify and unpack the archive, and give the base its name."""
    say(f"base {folder.name} is not in the cache yet ({folder.parent}): fetching it from {shown_url(url)}")
    part = _Part(folder.with_name(".archive"))
    _download(url, folder.name, part)
    with progress(f"checking the SHA-256 of {folder.name}", part.length) as count:
        found = hash_file(part.path, "sha256", update=count)["sha256"]
    if found != sha256:
        part.discard()
        raise ChecksumMismatch(f"{shown_url(url)} has SHA-256 {found}, {CHECKSUM} is {sha256}; nothing was kept")
    aside = folder.with_name(".unpacking")
    shutil.rmtree(aside, ignore_errors=True)  # a killed process's
    try:
        aside.mkdir()
        unpack_base(part.path, aside, folder.name)
        folder.with_name(".sha256").write_text(f"{sha256}\n", encoding="utf-8")
        for damaged in _bases_in(folder.parent):
            shutil.rmtree(damaged)
        part.discard()
        os.replace(aside, folder)
    except BadBase as error:
        part.discard()
        raise BadBase(f"{shown_url(url)} is no archive of a usable base: {error.message}; nothing was kept") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


# --- download -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Origin:
    """What the bytes of an archive are part of."""

    source: str = ""  # the URL without its query
    version: str = ""  # the server's ETag, else Last-Modified
    size: int = 0  # bytes of the whole archive; 0: not known


@dataclass(frozen=True)
class _Part:
    """An archive as far as it has come."""

    path: Path

    @property
    def length(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def _note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    def origin(self) -> _Origin:
        try:
            return _Origin(**json.loads(self._note.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return _Origin()

    def note(self, origin: _Origin) -> None:
        self._note.write_text(json.dumps(asdict(origin)), encoding="utf-8")

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)


class _TryAgain(Exception):
    """The server has a trouble that may pass."""


def _download(url: str, name: str, part: _Part) -> None:
    """Bring `part` to its full length, from where an earlier try or an earlier process stopped."""
    most, failures = part.length, 0
    with _client() as client:
        while True:
            try:
                return _try(client, url, name, part)
            except (httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
                raise FetchFailed(f"{shown_url(url)} can't be fetched: {error}") from None
            except httpx.TimeoutException:
                reason = f"nothing came for {STALL_SECONDS:g} s"
            except (httpx.TransportError, _TryAgain) as error:
                reason = str(error) or type(error).__name__
            if part.length >= most + LEAST_GAIN:
                failures = 0
            most = max(most, part.length)
            here = size_text(part.length)
            if failures == len(PAUSES):
                kept = f"The {here} that arrived stay, and the next start resumes from there" if part.length else ""
                raise FetchFailed(f"{shown_url(url)} can't be fetched: {reason}. {kept or 'Check server and network'}")
            say(f"{shown_url(url)}: {reason}; {here} are here, trying again in {PAUSES[failures]:g} s")
            time.sleep(PAUSES[failures])
            failures += 1


def _client() -> httpx.Client:
    try:
        return httpx.Client(follow_redirects=True, timeout=STALL_SECONDS)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise FetchFailed(f"the proxy that the environment names (HTTPS_PROXY, …) can't be used: {error}") from None


def _try(client: httpx.Client, url: str, name: str, part: _Part) -> None:
    """One request. Raises httpx's errors, _TryAgain or FetchFailed; what came is in `part` all the same."""
    have, origin = part.length, part.origin()
    if have and have == origin.size:
        say(f"the archive of {name} is here already ({size_text(have)})")
        return
    same_source = origin.source == shown_url(url)  # another mirror has other tags; there the checksum alone decides
    headers = {"Accept-Encoding": "identity", "User-Agent": "alpaca"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if same_source and origin.version:
            headers["If-Range"] = origin.version
    with client.stream("GET", url, headers=headers) as response:
        total, begins = _extent(response)
        if response.status_code == 416 and have and total == have:
            return
        version = _version(response)
        changed = (total and origin.size and total != origin.size) or (same_source and version != origin.version)
        if begins not in (0, have) or (begins and changed):
            part.discard()
            raise _TryAgain("the server can't resume what is here, or has another file now: starting over")
        if have and not begins:
            say(f"the server sends {name} from its beginning again: it can't resume, or has another file now")
            part.discard()
        _save(response, name, part, begins, _Origin(shown_url(url), version, total or (begins and origin.size)))


def _extent(response: httpx.Response) -> tuple[int, int]:
    """Bytes of the whole file (0: not known), and at which of them the answer begins (-1: there are none in it)."""
    status = response.status_code
    if status == 200:
        length = response.headers.get("Content-Length", "")
        return int(length) if length.isdecimal() else 0, 0
    if status in (206, 416):
        span = re.fullmatch(r"bytes (?:\*|(\d+)-\d+)/(?:\*|(\d+))", response.headers.get("Content-Range", "").strip())
        first, total = span.groups() if span else (None, None)
        return int(total or 0), int(first) if first and status == 206 else -1
    answer = f"the server answers {status} {response.reason_phrase}"
    if status in TRANSIENT or status >= 500:
        raise _TryAgain(answer)
    raise FetchFailed(f"{shown_url(str(response.url))} can't be fetched: {answer}. Check the URL and who may read it")


def _version(response: httpx.Response) -> str:
    """What the server knows this version of the file by; after a weak ETag nobody may ask to go on."""
    tag = str(response.headers.get("ETag", ""))
    return tag if tag and not tag.startswith("W/") else str(response.headers.get("Last-Modified", ""))


def _save(response: httpx.Response, name: str, part: _Part, begins: int, origin: _Origin) -> None:
    rest = max(0, origin.size - begins)
    what = f"downloading {name}" + (f" from {size_text(begins)} on, which are here already" if begins else "")
    with (
        room_for(rest + origin.size, part.path.parent, f"download and unpack {name}"),
        part.path.open("ab" if begins else "wb") as out,
    ):
        part.note(origin)
        with progress(what, rest) as count:
            for chunk in response.iter_raw():
                count(out.write(chunk))
    if part.length < origin.size:
        raise _TryAgain(f"the server ended after {size_text(part.length)} of {size_text(origin.size)}")
