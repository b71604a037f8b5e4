"""An adapter in one file: packed for Cog's training output, unpacked member by member under limits.

An archive is a stranger's. It is read from front to back with bounds on everything that grows: the bytes it unpacks to
(against its own size), the members, the time, and in a tar whatever `alpaca/tar.py` bounds.
"""

from __future__ import annotations

import io
import os
import struct
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from alpaca.adapter.card import CARD
from alpaca.adapter.folder import WEIGHTS
from alpaca.adapter.lora_config import CONFIG
from alpaca.cancellation import NEVER, Cancellation
from alpaca.errors import AdapterNotFound, BadArchive, is_full_disk
from alpaca.files import written_aside
from alpaca.tar import CHUNK, DAMAGE, NoTar, Readable, Unpacked, tar_members

WANTED = (CONFIG, WEIGHTS, CARD)
MAX_MEMBERS = 1000
MAX_BYTES = {CONFIG: 1 << 20, CARD: 1 << 20, WEIGHTS: 8 << 30}
MAX_SECONDS = 600.0
# What the readers of the standard library raise on damaged archives.
DAMAGED = (*DAMAGE, zipfile.BadZipFile, zlib.error, struct.error, OSError, RuntimeError, IndexError, OverflowError)


def pack(folder: Path, archive: Path) -> Path:
    """Zip the adapter in `folder` (and its README and report, nothing else) into `archive`, written aside first."""
    names = [name for name in (*WANTED, "README.md") if (folder / name).is_file()]
    if CONFIG not in names or WEIGHTS not in names:
        raise AdapterNotFound(f"{folder} has no {CONFIG} and {WEIGHTS}: there is nothing to pack")
    report = [p for p in sorted((folder / "report").rglob("*")) if p.is_file()]
    with (
        written_aside(archive) as aside,
        zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as zipped,
    ):
        for path in [folder / name for name in names] + report:
            zipped.write(path, path.relative_to(folder).as_posix())
    return archive


def unpack(archive: Path, folder: Path, cancellation: Cancellation = NEVER) -> None:
    """Take the adapter's three files out of a zip or tar into `folder`, whatever folders they lie in inside.

    Every other member is passed over. Raises BadArchive for links, duplicates, too many members, a member over its
    limit in bytes really read, an archive that swells like a bomb, or a file that is no archive; and Cancelled.
    """
    taken: set[str] = set()
    try:
        with _Source(archive, cancellation) as source:
            for number, (name, stream) in enumerate(_members(source)):
                if number >= MAX_MEMBERS:
                    raise BadArchive(f"has over {MAX_MEMBERS} members")
                base_name = name.replace("\\", "/").rsplit("/", 1)[-1]
                if base_name not in WANTED:
                    continue
                if stream is None:
                    raise BadArchive(f"{base_name} is a link or device, not a file")
                if base_name in taken:
                    raise BadArchive(f"has {base_name} twice")
                taken.add(base_name)
                _copy(stream, folder / base_name, MAX_BYTES[base_name])
    except BadArchive as error:
        raise BadArchive(f"{archive.name}: {error.message}") from None
    except NoTar:
        raise BadArchive(f"{archive.name}: neither a zip nor a tar archive") from None
    except DAMAGED as error:
        if is_full_disk(error):  # that of this side: nothing is wrong with the archive
            raise
        raise BadArchive(f"{archive.name} can't be unpacked: {str(error) or type(error).__name__}") from error
    lacking = [name for name in (CONFIG, WEIGHTS) if name not in taken]
    if lacking:
        raise BadArchive(f"{archive.name} has no {lacking[0]}: it holds no adapter")


# --- bounds -------------------------------------------------------------------------------------------------------
class _Source(io.BufferedReader):
    """The archive's own bytes, never many at once, and not for ever."""

    def __init__(self, path: Path, cancellation: Cancellation) -> None:
        super().__init__(path.open("rb", buffering=0))
        self._cancellation = cancellation
        self.size = os.fstat(self.fileno()).st_size
        self.deadline = time.monotonic() + MAX_SECONDS

    def read(self, size: int | None = -1, /) -> bytes:
        self._cancellation.check()
        if size is None or size < 0:
            size = max(0, self.size - self.tell())
        if size > CHUNK:
            raise BadArchive(f"a directory of {size} bytes; at most {CHUNK} are read")
        if time.monotonic() > self.deadline:
            raise BadArchive(f"not unpacked after {MAX_SECONDS:g} s")
        return super().read(size)


def _copy(stream: Readable, target: Path, limit: int) -> None:
    size = 0
    with target.open("wb") as out:
        while chunk := stream.read(CHUNK):
            size += len(chunk)
            if size > limit:
                raise BadArchive(f"{target.name} is larger than {limit} bytes")
            out.write(chunk)


# --- members ------------------------------------------------------------------------------------------------------
def _members(source: _Source) -> Iterator[tuple[str, Readable | None]]:
    """Yield name and content of each member, None for what is no file; read it before the next is asked for."""
    if zipfile.is_zipfile(source):
        return _zip_members(source)
    return ((member.name, member.content) for member in tar_members(source))


def _zip_members(source: _Source) -> Iterator[tuple[str, Readable | None]]:
    with zipfile.ZipFile(source) as zipped:
        for info in zipped.infolist():
            kind = info.external_attr >> 28
            if info.is_dir() or kind not in (0, 8):  # 8: regular file, 0: written without Unix modes
                yield info.filename, None
                continue
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others are unpacked at one go
                raise BadArchive(f"packed by method {info.compress_type}; make a zip with the usual one, deflate")
            with zipped.open(info) as stream:
                yield info.filename, Unpacked(stream, source.size)
