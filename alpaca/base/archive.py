"""A base in one file: a tar, plain or gzip, is unpacked into a flat folder, under limits.

The archive's checksum was verified before, so it is the operator's own. All the same its names lead nowhere else, and
none of its numbers is trusted: the standard reader follows sizes below zero and reads whole headers into memory.
"""

from __future__ import annotations

import gzip
import os
import re
import struct
import tarfile
import zlib
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO, cast

from alpaca.base.check import HUB_FILES, check_base
from alpaca.errors import BadBase
from alpaca.files import room_for
from alpaca.progress import progress

MAX_MEMBERS = 10_000
# Weights hardly pack: an archive that unpacks to more than this many times its size is a bomb.
MAX_RATIO, ALWAYS_ALLOWED = 30, 64 << 20
CHUNK = 1 << 20  # the most that is read at once, a tar's special headers included
NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}"
DAMAGE = (
    tarfile.TarError, gzip.BadGzipFile, zlib.error, struct.error, EOFError, ValueError, OverflowError, RecursionError,
)  # fmt: skip
HOW = "tar cf llama-7b.tar -C weights/llama-7b ."


def unpack_base(archive: Path, folder: Path, name: str) -> None:
    """Write the files of the base in `archive` into the empty `folder`, flat, and check that they are a base's.

    `name` is what the base is called in messages. Raises BadBase, and FetchFailed where the disk has no room.
    """
    size = archive.stat().st_size
    with archive.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    try:
        with cast(BinaryIO, gzip.open(archive)) if packed else archive.open("rb") as stream:
            bounded = cast(BinaryIO, _Bounded(stream, max(ALWAYS_ALLOWED, MAX_RATIO * size)))
            with tarfile.TarFile(fileobj=bounded) as tar:
                members = _members(tar)
                needed = sum(member.size for member in members.values())
                what = f"unpacking {len(members)} files of {name}"
                with room_for(needed, folder, f"unpack {name}"), progress(what, needed) as count:
                    for file_name, member in members.items():
                        _write(cast(BinaryIO, tar.extractfile(member)), folder / file_name, count)
    except DAMAGE as error:
        raise BadBase(f"it can't be read as a tar, plain or gzip: {str(error) or type(error).__name__}") from None
    try:
        check_base(folder)
    except BadBase as error:
        raise BadBase(error.message.replace(str(folder), name)) from None


class _Bounded:
    """The bytes of a tar, never many at once, and not without end."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self._stream = stream
        self._limit = limit

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, position: int) -> int:
        if not 0 <= position <= self._limit:
            raise BadBase(f"it swells to over {MAX_RATIO} times its size, or a member of it has an impossible size")
        return self._stream.seek(position)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= CHUNK:
            raise BadBase(f"it has a header of {size} bytes; at most {CHUNK} are read")
        return self._stream.read(size)


def _members(tar: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    """The files of the base by name: those at the archive's top, else those in the one folder with a config.json.

    What a base does not need is passed over, and so are deeper folders.
    """
    found: dict[str, list[tuple[str, tarfile.TarInfo]]] = {}
    for number, member in enumerate(tar):
        if number >= MAX_MEMBERS:
            raise BadBase(f"it has over {MAX_MEMBERS} members")
        if member.size < 0:
            raise BadBase(f"it has a member of {member.size} bytes")
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        if member.name.startswith("/") or ".." in parts:
            raise BadBase(f"its member {member.name[:80]!r} leads out of the folder. Pack the base with: {HOW}")
        *folders, name = parts or [""]
        if len(folders) < 2 and re.fullmatch(NAME, name) and any(fnmatchcase(name, kind) for kind in HUB_FILES):
            found.setdefault("".join(folders), []).append((name, member))
    tops = sorted(top for top, files in found.items() if any(name == "config.json" for name, _ in files))
    if not tops:
        raise BadBase(f"it has no config.json, neither at its top nor in a folder there. Pack the base with: {HOW}")
    if tops[0] and len(tops) > 1:
        raise BadBase(f"it holds several bases: {', '.join(tops[:5])}. Pack one with: {HOW}")
    return _plain_files(found[tops[0]])


def _plain_files(files: list[tuple[str, tarfile.TarInfo]]) -> dict[str, tarfile.TarInfo]:
    members: dict[str, tarfile.TarInfo] = {}
    for name, member in files:
        if not member.isreg() or member.issparse():
            raise BadBase(
                f"its {name} is a link, a device or sparse, not a file; tar -h --hard-dereference packs files"
            )
        if name in members:
            raise BadBase(f"it has {name} twice")
        members[name] = member
    return members


def _write(inside: BinaryIO, target: Path, count: Callable[[int], None]) -> None:
    with target.open("xb") as out:
        while chunk := inside.read(CHUNK):
            count(out.write(chunk))
        out.flush()
        os.fsync(out.fileno())  # the rename must not reach the disk before the contents do
