"""A base named by a URL and a checksum: downloaded once, verified, unpacked, and kept in the cache.

URL and checksum are the operator's, from the command line or the environment; a client's never come here
(`alpaca/training/job_inputs.py` refuses them).
``$ALPACA_CACHE/bases/<first 16 digits of the SHA-256>/`` holds

- ``llama-7b/``: the base, named after its archive. It is made aside and renamed: under its name it is whole.
- ``.sha256``: the whole hash of the archive that it came from.
- ``.archive`` and ``.archive.json``: a download that was interrupted, and what it is part of. It will be resumed.
- ``.lock``: locked by the process that fetches. Others wait for it, then use what it made.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx

from alpaca.base.archive import unpack_base
from alpaca.base.check import check_base
from alpaca.base.resumable_download import Part, resume_download
from alpaca.errors import BadBase, ChecksumMismatch, FetchFailed
from alpaca.files import hash_file, locked
from alpaca.paths import cache_home
from alpaca.progress import LOG_SECONDS, progress, say
from alpaca.words import shown_url, size_text

CHECKSUM = "BASE_SHA256"


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
            with locked(home / ".lock", _waiting(home)):  # another process may have made it by now
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


def _waiting(home: Path) -> Callable[[float], None]:
    """What is said, now and then, while another process fetches into `home`."""
    next_line = 0.0

    def busy(waited: float) -> None:
        nonlocal next_line
        if waited >= next_line:
            so_far = size_text(Part(home / ".archive").length)
            say(f"another process fetches this base into {home} ({so_far} so far): waiting for it, {waited:.0f} s")
            next_line = waited + LOG_SECONDS

    return busy


def _make(url: str, sha256: str, folder: Path) -> Path:
    """Fetch, verify and unpack the archive, and give the base its name."""
    say(f"base {folder.name} is not in the cache yet ({folder.parent}): fetching it from {shown_url(url)}")
    part = Part(folder.with_name(".archive"))
    resume_download(url, folder.name, part)
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
