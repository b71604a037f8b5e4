"""An adapter in one file: packed for Cog's training output, unpacked member by member under limits.

An archive is a stranger's. It is read from front to back with bounds on everything that grows: the bytes it unpacks to
(against its own size), the members, the headers, the memory of a decoder, the time. Tars are read here: the standard
reader follows sizes below zero, reads whole headers into memory and looks into sparse files, whatever their maps ask.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from alpaca.adapter.card import CARD
from alpaca.adapter.folder import WEIGHTS
from alpaca.adapter.lora_config import CONFIG
from alpaca.errors import AdapterNotFound, BadArchive, is_full_disk

WANTED = (CONFIG, WEIGHTS, CARD)
MAX_MEMBERS = 1000
MAX_BYTES = {CONFIG: 1 << 20, CARD: 1 << 20, WEIGHTS: 8 << 30}
MAX_SECONDS = 600.0
# Weights hardly pack (below 3 to 1): an archive that unpacks to more than this many times its size is a bomb.
MAX_RATIO, ALWAYS_ALLOWED = 30, 64 << 20
MAX_HEADER = 1 << 16  # a tar's extended headers and long names are read whole
MAX_HEADERS = 16  # before one member
MAX_XZ_MEMORY = 100 << 20  # xz -9 takes 65 MiB; a header may ask for 4 GiB
CHUNK = 1 << 20  # the most that is read at once, a zip's directory included
BLOCK = tarfile.BLOCKSIZE
LONG_NAME, LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
# What the readers of the standard library raise on damaged archives.
DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, RuntimeError,
    ValueError, IndexError, OverflowError, MemoryError,
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
    limit in bytes really read, an archive that swells like a bomb, or a file that is no archive.
    """
    taken: set[str] = set()
    try:
        with _Source(archive) as source:
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
    except DAMAGE as error:
        if is_full_disk(error):  # that of this side: nothing is wrong with the archive
            raise
        raise BadArchive(f"{archive.name} can't be unpacked: {str(error) or type(error).__name__}") from error
    lacking = [name for name in (CONFIG, WEIGHTS) if name not in taken]
    if lacking:
        raise BadArchive(f"{archive.name} has no {lacking[0]}: it holds no adapter")


# --- bounds -------------------------------------------------------------------------------------------------------
class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Source(io.BufferedReader):
    """The archive's own bytes, never many at once, and not for ever."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.open("rb", buffering=0))
        self.size = os.fstat(self.fileno()).st_size
        self.deadline = time.monotonic() + MAX_SECONDS

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = max(0, self.size - self.tell())
        if size > CHUNK:
            raise BadArchive(f"a directory of {size} bytes; at most {CHUNK} are read")
        if time.monotonic() > self.deadline:
            raise BadArchive(f"not unpacked after {MAX_SECONDS:g} s")
        return super().read(size)


class _Unpacked:
    """What comes out of a decoder, front to back, until it is too much for the archive it came from."""

    def __init__(self, stream: _Readable, source: _Source) -> None:
        self._stream = stream
        self._left = max(ALWAYS_ALLOWED, MAX_RATIO * source.size)

    def read(self, size: int, /) -> bytes:
        """`size` bytes, and fewer only at the end."""
        data = self._stream.read(min(size, CHUNK))
        self._left -= len(data)
        if self._left < 0:
            raise BadArchive(f"it swells to over {MAX_RATIO} times its size, as no adapter does")
        return data

    def skip(self, size: int) -> None:
        """Pass over `size` bytes. Raises EOFError where there are not so many."""
        while size > 0:
            passed = len(self.read(size))
            if not passed:
                raise EOFError("it ends early")
            size -= passed


class _Member:
    """The `left` bytes that are the next member of a tar."""

    def __init__(self, stream: _Unpacked, left: int) -> None:
        self._stream = stream
        self.left = left

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(min(size, self.left))
        if not data and self.left:
            raise EOFError("it ends early")
        self.left -= len(data)
        return data


def _copy(stream: _Readable, target: Path, limit: int) -> None:
    size = 0
    with target.open("wb") as out:
        while chunk := stream.read(CHUNK):
            size += len(chunk)
            if size > limit:
                raise BadArchive(f"{target.name} is larger than {limit} bytes")
            out.write(chunk)


# --- members ------------------------------------------------------------------------------------------------------
def _members(source: _Source) -> Iterator[tuple[str, _Readable | None]]:
    """Yield name and content of each member, None for what is no file; read it before the next is asked for."""
    if zipfile.is_zipfile(source):
        return _zip_members(source)
    source.seek(0)
    magic = source.peek(6)[:6]
    source.seek(0)
    stream: _Readable = source
    if magic.startswith(b"\x1f\x8b"):
        stream = gzip.GzipFile(fileobj=source)
    elif magic.startswith(b"BZh"):
        stream = bz2.BZ2File(source)
    elif magic == b"\xfd7zXZ\0":
        stream = io.BufferedReader(_Xz(source), CHUNK)
    return _tar_members(_Unpacked(stream, source))


def _zip_members(source: _Source) -> Iterator[tuple[str, _Readable | None]]:
    with zipfile.ZipFile(source) as zipped:
        for info in zipped.infolist():
            kind = info.external_attr >> 28
            if info.is_dir() or kind not in (0, 8):  # 8: regular file, 0: written without Unix modes
                yield info.filename, None
                continue
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others are unpacked at one go
                raise BadArchive(f"packed by method {info.compress_type}; make a zip with the usual one, deflate")
            with zipped.open(info) as stream:
                yield info.filename, _Unpacked(stream, source)


def _tar_members(stream: _Unpacked) -> Iterator[tuple[str, _Readable | None]]:
    """The members of a tar, from its headers in turn (POSIX.1-2001 and GNU's long names)."""
    long_name = ""
    headers = 0
    first = True
    while (block := stream.read(BLOCK)).strip(b"\0") or first:
        info = _header(block, first)
        first = False
        if info.type in (LONG_NAME, LONG_LINK, *EXTENDED, tarfile.XGLTYPE):
            if info.size > MAX_HEADER:
                raise BadArchive(f"a header or special member of {info.size} bytes; at most {MAX_HEADER} are read")
            headers += 1
            if headers > MAX_HEADERS:
                raise BadArchive(f"over {MAX_HEADERS} headers before one member")
            content = stream.read(info.size)
            stream.skip(-info.size % BLOCK)
            if info.type == LONG_NAME:
                long_name = content.rstrip(b"\0").decode("utf-8", "replace")
            elif info.type in EXTENDED:
                long_name = _extended_name(content) or long_name
            continue
        name, long_name, headers = long_name or info.name, "", 0
        if info.type == tarfile.GNUTYPE_SPARSE:
            raise BadArchive("a sparse file; make the tar without --sparse")
        if not info.isfile():
            yield name, None
            stream.skip(0 if info.type in tarfile.SUPPORTED_TYPES else info.size + -info.size % BLOCK)
            continue
        member = _Member(stream, info.size)
        yield name, member
        stream.skip(member.left + -info.size % BLOCK)


def _header(block: bytes, first: bool) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise BadArchive("neither a zip nor a tar archive" if first else f"has a damaged header: {error}") from None
    if info.size < 0:
        raise BadArchive(f"has a member of {info.size} bytes")
    return info


def _extended_name(content: bytes) -> str:
    """The path in a tar's extended header, "" without one: records ``<length> <key>=<value>\\n`` one after another."""
    name, at = "", 0
    while at < len(content) and content[at] != 0:
        digits, space, _ = content[at : at + 8].partition(b" ")
        if not space or not digits.isdigit() or int(digits) < len(digits) + 3:
            raise BadArchive("has a damaged extended header")
        key, _, value = content[at + len(digits) + 1 : at + int(digits)].rstrip(b"\n").partition(b"=")
        if key.startswith(b"GNU.sparse.") or key == b"size":
            raise BadArchive(f"an extended header sets {key.decode()}: sparse and giant files are not read")
        if key == b"path":
            name = value.decode("utf-8", "replace")
        at += int(digits)
    return name


class _Xz(io.RawIOBase):
    """One .xz stream, unpacked with a bound on the memory that its header may ask for."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = b""
        while not data and not self._decoder.eof:
            packed = self._source.read(io.DEFAULT_BUFFER_SIZE) if self._decoder.needs_input else b""
            if self._decoder.needs_input and not packed:
                raise EOFError("it ends early")
            data = self._decoder.decompress(packed, len(buffer))
        buffer[: len(data)] = data
        return len(data)
