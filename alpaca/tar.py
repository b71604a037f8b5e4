"""A tar from anywhere, plain or packed by gzip, bzip2 or xz, read from front to back with bounds on all that grows.

Bounded are the bytes that come out (against the archive's own size), the headers, the memory of a decoder, and how much
goes in before something comes out. The standard reader follows sizes below zero, reads whole headers into memory, looks
into sparse files, whatever their maps ask, and reads a gzip header byte by byte to an end that need not come.
"""

from __future__ import annotations

import bz2
import io
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

# Weights hardly pack (below 3 to 1): an archive that unpacks to more than this many times its size is a bomb.
MAX_RATIO, ALWAYS_ALLOWED = 30, 64 << 20
MAX_HEADER = 1 << 16  # extended headers and long names are read whole
MAX_HEADERS = 16  # before one member
MAX_XZ_MEMORY = 100 << 20  # xz -9 takes 65 MiB; a header may ask for 4 GiB
MAX_BARREN = 2 << 20  # packed bytes from which nothing comes; a block of bzip2 has up to 900 kB
CHUNK = 1 << 20  # the most that is unpacked at once
PACKED_CHUNK = 1 << 16  # and the most that a decoder is given
BLOCK = tarfile.BLOCKSIZE
LONG_NAME, LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
# What reading an archive may raise: Damaged, and what the standard library finds. OSError is not: it is the disk's.
DAMAGE = (EOFError, ValueError, MemoryError)


class Damaged(ValueError):
    """What is wrong with an archive, in words. Whoever unpacks it makes an error of its own from them."""


class NoTar(Damaged):
    """It does not begin as a tar does."""


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Packed(Readable, Protocol):
    """An archive's own bytes: a file, opened to read."""

    def seek(self, offset: int, whence: int = ..., /) -> int: ...
    def tell(self) -> int: ...
    def fileno(self) -> int: ...


@dataclass(frozen=True)
class Member:
    """A member of a tar. `content` is None for what is no file; read it before the next member is asked for."""

    name: str
    size: int
    content: Readable | None


def tar_members(archive: Packed) -> Iterator[Member]:
    """Yield the members of `archive`, from its headers in turn (POSIX.1-2001 and GNU's long names).

    Raises one of DAMAGE: NoTar for what is none, Damaged where a bound is passed.
    """
    stream = _opened(archive)
    extended: dict[str, str] = {}  # what the headers before a member say of it
    headers = 0
    first = True
    while (block := stream.read(BLOCK)).strip(b"\0") or first:
        info = _header(block, first)
        first = False
        if info.type in (LONG_NAME, LONG_LINK, *EXTENDED, tarfile.XGLTYPE):
            headers += 1
            extended |= _said(info, _special_content(stream, info.size, headers))
            continue
        if info.type == tarfile.GNUTYPE_SPARSE:
            raise Damaged("a sparse file; make the tar without --sparse")
        name, size = extended.get("path") or info.name, int(extended.get("size", info.size))
        extended, headers = {}, 0
        if info.isfile():
            content = _Content(stream, size)
            yield Member(name, size, content)
            stream.skip(content.left + -size % BLOCK)
        else:
            yield Member(name, size, None)
            stream.skip(0 if info.type in tarfile.SUPPORTED_TYPES else size + -size % BLOCK)


# --- bytes --------------------------------------------------------------------------------------------------------
class Unpacked:
    """What comes out of a decoder, front to back, until it is too much for an archive of `packed_size` bytes."""

    def __init__(self, stream: Readable, packed_size: int) -> None:
        self._stream = stream
        self._left = max(ALWAYS_ALLOWED, MAX_RATIO * packed_size)

    def read(self, size: int, /) -> bytes:
        """`size` bytes, at most CHUNK, and fewer only at the end."""
        data = self._stream.read(min(size, CHUNK))
        self._left -= len(data)
        if self._left < 0:
            raise Damaged(f"it swells to over {MAX_RATIO} times its size, as no weights do")
        return data

    def skip(self, size: int) -> None:
        """Pass over `size` bytes. Raises EOFError where there are fewer."""
        while size > 0:
            passed = len(self.read(size))
            if not passed:
                raise EOFError("it ends early")
            size -= passed


class _Plain(Unpacked):
    """A tar that is not packed: what is passed over is not read."""

    def __init__(self, archive: Packed, size: int) -> None:
        super().__init__(archive, size)
        self._archive = archive
        self._size = size

    def skip(self, size: int) -> None:
        if self._archive.tell() + size > self._size:
            raise EOFError("it ends early")
        self._archive.seek(size, os.SEEK_CUR)


class _Content:
    """The `left` bytes that are the next member's."""

    def __init__(self, stream: Unpacked, left: int) -> None:
        self._stream = stream
        self.left = left

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(min(size, self.left))
        if not data and self.left:
            raise EOFError("it ends early")
        self.left -= len(data)
        return data


# --- decoders -----------------------------------------------------------------------------------------------------
class _Decoder(Protocol):
    """As the standard library has it for bzip2 and xz."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Gzip:
    """A decoder for one member of a gzip file."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        out = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        self.needs_input = len(out) < max_length and not self._zlib.unconsumed_tail
        return out


DECODERS: dict[bytes, Callable[[], _Decoder]] = {
    b"\x1f\x8b": _Gzip,
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_XZ_MEMORY),
}


def _opened(archive: Packed) -> Unpacked:
    size = os.fstat(archive.fileno()).st_size
    archive.seek(0)
    begin = archive.read(max(map(len, DECODERS)))
    archive.seek(0)
    for magic, decoder in DECODERS.items():
        if begin.startswith(magic):
            return Unpacked(io.BufferedReader(_Decoded(archive, magic, decoder), CHUNK), size)
    return _Plain(archive, size)


class _Decoded(io.RawIOBase):
    """The streams of a packed file one after another, a bounded piece at a time."""

    def __init__(self, archive: Packed, magic: bytes, decoder: Callable[[], _Decoder]) -> None:
        self._archive = archive
        self._magic = magic
        self._new_decoder = decoder
        self._decoder = decoder()
        self._barren = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        packed = b""
        while True:
            if self._decoder.eof:
                packed = self._decoder.unused_data
                if len(packed) < len(self._magic):
                    packed += self._archive.read(PACKED_CHUNK)
                if not packed.startswith(self._magic):  # the end, or padding behind it
                    return 0
                self._decoder = self._new_decoder()
            elif self._decoder.needs_input:
                packed = self._archive.read(PACKED_CHUNK)
                if not packed:
                    raise EOFError("it ends early")
            if data := self._unpack(packed, len(buffer)):
                self._barren = 0
                buffer[: len(data)] = data
                return len(data)
            self._barren += len(packed)
            if self._barren > MAX_BARREN:
                raise Damaged(f"nothing comes out of {MAX_BARREN} packed bytes: a header without an end")
            packed = b""

    def _unpack(self, packed: bytes, size: int) -> bytes:
        try:
            return self._decoder.decompress(packed, size)
        except (zlib.error, lzma.LZMAError, OSError) as error:  # OSError is bzip2's
            raise Damaged(str(error)) from None


# --- headers ------------------------------------------------------------------------------------------------------
def _header(block: bytes, first: bool) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise NoTar("it is no tar") if first else Damaged(f"it has a damaged header: {error}") from None
    if info.size < 0:
        raise Damaged(f"it has a member of {info.size} bytes")
    return info


def _special_content(stream: Unpacked, size: int, headers: int) -> bytes:
    if size > MAX_HEADER:
        raise Damaged(f"a header or special member of {size} bytes; at most {MAX_HEADER} are read")
    if headers > MAX_HEADERS:
        raise Damaged(f"over {MAX_HEADERS} headers before one member")
    content = stream.read(size)
    stream.skip(-size % BLOCK)
    return content


def _said(info: tarfile.TarInfo, content: bytes) -> dict[str, str]:
    """What a special member says of the next one: its path or its size."""
    if info.type == LONG_NAME:
        return {"path": content.rstrip(b"\0").decode("utf-8", "replace")}
    return dict(_records(content)) if info.type in EXTENDED else {}


def _records(content: bytes) -> Iterator[tuple[str, str]]:
    """Path and size in a tar's extended header: records ``<length> <key>=<value>\\n`` one after another."""
    at = 0
    while at < len(content) and content[at] != 0:
        digits, space, _ = content[at : at + 8].partition(b" ")
        if not space or not digits.isdigit() or int(digits) < len(digits) + 3:
            raise Damaged("it has a damaged extended header")
        key, _, value = content[at + len(digits) + 1 : at + int(digits)].rstrip(b"\n").partition(b"=")
        if key.startswith(b"GNU.sparse."):
            raise Damaged(f"an extended header sets {key.decode('utf-8', 'replace')}: sparse files are not read")
        if key == b"size" and not (value.isdigit() and len(value) < 20):
            raise Damaged(f"an extended header sets size to {value[:20].decode('utf-8', 'replace')!r}")
        if key in (b"path", b"size"):
            yield key.decode(), value.decode("utf-8", "replace")
        at += int(digits)
