"""An adapter in one file: packed for Cog's training output, unpacked member by member under limits."""

from __future__ import annotations

import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from alpaca.adapter import CARD, CONFIG, WEIGHTS
from alpaca.errors import AdapterNotFound, BadArchive

WANTED = (CONFIG, WEIGHTS, CARD)
MAX_MEMBERS = 1000
MAX_BYTES = {CONFIG: 1 << 20, CARD: 1 << 20, WEIGHTS: 8 << 30}
MAX_HEADER = 1 << 20  # a tar's extended headers and long names are read whole
CHUNK = 1 << 20
# What the readers of the standard library raise on damaged archives.
DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, RuntimeError,
    ValueError, IndexError,
)  # fmt: skip


def pack(folder: Path, archive: Path) -> Path:
    """Zip the adapter in `folder` (and its README and report, nothing else) into `archive`, written aside first."""
    names = [name for name in (*WANTED, "README.md") if (folder / name).is_file()]
    if CONFIG not in names or WEIGHTS not in names:
        raise AdapterNotFound(f"{folder} has no {CONFIG} and {WEIGHTS}: there is nothing to pack")
    report = [p for p in sorted((folder / "report").rglob("*")) if p.is_file()]
    aside = archive.with_name(f".{archive.name}.{os.getpid()}.part")
    try:
        with zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as zipped:
            for path in [folder / name for name in names] + report:
                zipped.write(path, path.relative_to(folder).as_posix())
        os.replace(aside, archive)
    finally:
        aside.unlink(missing_ok=True)
    return archive


def unpack(archive: Path, folder: Path) -> None:
    """Take the adapter's three files out of a zip or tar into `folder`, whatever folders they lie in inside.

    Every other member is passed over. Raises BadArchive for links, duplicates, too many members, a member over its
    limit in bytes really read, or a file that is no archive.
    """
    taken: set[str] = set()
    try:
        for number, (name, is_plain, stream) in enumerate(_members(archive)):
            if number >= MAX_MEMBERS:
                raise BadArchive(f"{archive.name} has over {MAX_MEMBERS} members")
            base_name = name.replace("\\", "/").rsplit("/", 1)[-1]
            if base_name not in WANTED:
                continue
            if not is_plain or stream is None:
                raise BadArchive(f"{archive.name}: {base_name} is a link or device, not a file")
            if base_name in taken:
                raise BadArchive(f"{archive.name} has {base_name} twice")
            taken.add(base_name)
            _copy(stream, folder / base_name, MAX_BYTES[base_name])
    except DAMAGE as error:
        raise BadArchive(f"{archive.name} can't be unpacked: {error}") from error
    lacking = [name for name in (CONFIG, WEIGHTS) if name not in taken]
    if lacking:
        raise BadArchive(f"{archive.name} has no {lacking[0]}: it holds no adapter")


def _members(archive: Path) -> Iterator[tuple[str, bool, IO[bytes] | None]]:
    """Yield (name, is a plain file, open stream) of each member; streams are read before the next is asked for."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                kind = info.external_attr >> 28
                plain = not info.is_dir() and kind in (0, 8)  # 8: regular file, 0: written without Unix modes
                if plain:
                    with zipped.open(info) as stream:
                        yield info.filename, True, stream
                else:
                    yield info.filename, info.is_dir(), None
        return
    with tarfile.open(archive, "r:*", tarinfo=_BoundedInfo) as tar:
        for member in tar:
            yield member.name, member.isfile(), tar.extractfile(member) if member.isfile() else None


class _BoundedInfo(tarfile.TarInfo):
    """A tar member whose headers are bounded: packed, a gigabyte of them is a megabyte."""

    def _proc_member(self, tar: tarfile.TarFile) -> Any:  # the entry point that tarfile names for subclasses
        if not self.isreg() and self.size > MAX_HEADER:
            raise BadArchive(f"a header or special member of {self.size} bytes; at most {MAX_HEADER} are read")
        return super()._proc_member(tar)  # type: ignore[misc]


def _copy(stream: IO[bytes], target: Path, limit: int) -> None:
    size = 0
    with target.open("wb") as out:
        while chunk := stream.read(CHUNK):
            size += len(chunk)
            if size > limit:
                raise BadArchive(f"{target.name} is larger than {limit} bytes")
            out.write(chunk)
