"""Archives that swell, lie, lead elsewhere or hold nothing. Each maker is given the path to write to."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from tests.serving.hostile.case import Case

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PARTS = ((CONFIG, b'{"r": 1}'), (WEIGHTS, b"weights" * 500))
MIB = 1 << 20
ZEROS = bytes(MIB)


# --- zip ----------------------------------------------------------------------------------------------------------
def zip_of(members: Iterable[tuple[str, bytes]], path: Path, method: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as zipped:
        for name, content in members:
            info = zipfile.ZipInfo(name)  # without zipfile's own warning about doubles
            info.compress_type = method
            if name in zipped.NameToInfo:
                del zipped.NameToInfo[name]
            zipped.writestr(info, content)


def swelling_zip(part: str, mib: int, path: Path, method: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as zipped:
        for name, content in PARTS:
            if name != part:
                zipped.writestr(name, content)
        with zipped.open(part, "w", force_zip64=True) as out:
            for _ in range(mib):
                out.write(ZEROS)


def link_in_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as zipped:
        info = zipfile.ZipInfo(CONFIG)
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        zipped.writestr(info, "/etc/passwd")


def patched_zip(at_local: int, at_directory: int, value: bytes, path: Path) -> None:
    """Bytes changed at an offset in the first member's own header and in its entry in the directory."""
    zip_of(PARTS, path)
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", at_local), (b"PK\x01\x02", at_directory)):
        at = data.index(signature) + offset
        data[at : at + len(value)] = value
    path.write_bytes(data)


def directory_of_100_000(path: Path) -> None:
    """Entries that all lead to one member: half a minute and 60 MB to whoever reads the whole directory."""
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    directory = entry * 100_000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, len(directory), 0, 0)
    path.write_bytes(directory + end)


def zip64_that_lies(path: Path) -> None:
    """The directory lies 2**60 bytes in and has 2**60 bytes."""
    zip_of(PARTS, path)
    data = path.read_bytes()
    end = data.index(b"PK\x05\x06")
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 2, 2, 1 << 60, 1 << 60)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
    path.write_bytes(
        data[:end]
        + record
        + locator
        + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)
    )


# --- tar ----------------------------------------------------------------------------------------------------------
def tar_of(members: Iterable[tuple[str, bytes]], path: Path, mode: str = "w") -> None:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def special(kind: bytes, path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo(WEIGHTS)
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)


def block(kind: bytes, size: int, name: str = "x") -> bytes:
    """A tar header; sizes below zero and over 8 GiB are written as GNU tar does."""
    info = tarfile.TarInfo(name)
    info.type = kind
    data = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    if 0 <= size < 8 << 30:
        data[124:136] = b"%011o\0" % size
    else:
        data[124:136] = (size if size >= 0 else (1 << 96) + size).to_bytes(12, "big")
        data[124] |= 0x80
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


def headers(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def swelling_tar(pack: Callable[[bytes], bytes], part: str, path: Path) -> None:
    """A gigabyte of zeros in `part`; packed pieces that follow each other are one stream to gzip and bz2."""
    piece = pack(bytes(16 * MIB))
    path.write_bytes(pack(block(tarfile.REGTYPE, 1 << 30, part)) + piece * 64)


def swelling_xz(path: Path) -> None:
    path.write_bytes(lzma.compress(block(tarfile.REGTYPE, 1 << 30, WEIGHTS) + bytes(100 * MIB), preset=0))


def greedy_xz(path: Path) -> None:
    """A header that asks for 3 GiB of memory before the first byte comes out."""
    data = bytearray(lzma.compress(block(tarfile.REGTYPE, 512, WEIGHTS) + bytes(512), preset=0))
    length = (data[12] + 1) * 4
    at = data.index(b"\x21\x01", 12) + 2  # LZMA2, one byte of properties: the dictionary's size
    data[at] = 39
    data[12 + length - 4 : 12 + length] = struct.pack("<L", zlib.crc32(bytes(data[12 : 12 + length - 4])))
    path.write_bytes(data)


def pax(records: bytes, size: int | None = None) -> bytes:
    return block(tarfile.XHDTYPE, len(records) if size is None else size) + records + bytes(-len(records) % 512)


def record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n".encode()
    return next(b"%d" % n + body for n in range(len(body), len(body) + 9) if len(b"%d" % n) + len(body) == n)


def chain_of_long_names(path: Path) -> None:
    """50,000 headers before the first member: a reader that calls itself for each would run out of stack."""
    one = block(tarfile.GNUTYPE_LONGNAME, 512) + b"n" * 512
    path.write_bytes(gzip.compress(one * 50_000, 1))


def endless_sparse_map(path: Path) -> None:
    """A sparse file whose map continues, 21 pieces in each block of 512 bytes: 30 MB of entries from a small file."""
    first = bytearray(block(tarfile.GNUTYPE_SPARSE, 0, WEIGHTS))
    first[482] = 1
    first[148:156] = b" " * 8
    first[148:156] = b"%06o\0 " % sum(first)
    more = b"00000000001\x0000000000001\x00" * 21 + b"\1" + bytes(7)
    path.write_bytes(gzip.compress(bytes(first) + more * 40_000, 1))


def truncated(pack: Callable[[bytes], bytes], path: Path) -> None:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for name, content in ((CONFIG, b"{}"), (WEIGHTS, os.urandom(50_000))):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    data = pack(whole.getvalue())
    path.write_bytes(data[: len(data) // 2])


def nested(path: Path) -> None:
    zip_of(PARTS, path)
    inner = path.read_bytes()
    zip_of([("adapter.zip", inner)], path)


NUMBERED = [(f"{n}.txt", b"") for n in range(10_000)]
LEADING_OUT = [
    ("../../evil.sh", b"x"),
    ("/tmp/../evil.sh", b"x"),
    ("../" + CONFIG, b'{"r": 1}'),
    ("/../" + WEIGHTS, b"x"),
]
A_LINK = "is a link or device, not a file"
SWELLS = "swells to over"
BROKEN = "can't be unpacked"
ARCHIVES = [
    Case(name, make, said, code)
    for name, make, said, code in (
        # bombs
        ("a zip whose weights swell", partial(swelling_zip, WEIGHTS, 300), SWELLS, "E4004"),
        ("a zip whose configuration swells", partial(swelling_zip, CONFIG, 300), "larger than 1048576 bytes", "E4004"),
        ("a zip in bzip2, which unpacks at one go", partial(swelling_zip, WEIGHTS, 300, method=zipfile.ZIP_BZIP2),
         "packed by method 12", "E4004"),
        ("a zip in LZMA, which unpacks at one go", partial(swelling_zip, WEIGHTS, 100, method=zipfile.ZIP_LZMA),
         "packed by method 14", "E4004"),
        ("a tar.gz whose weights swell", partial(swelling_tar, partial(gzip.compress, compresslevel=1), WEIGHTS),
         SWELLS, "E4004"),
        ("a tar.gz whose other members swell", partial(swelling_tar, partial(gzip.compress, compresslevel=1), "x"),
         SWELLS, "E4004"),
        ("a tar.bz2 whose weights swell", partial(swelling_tar, bz2.compress, WEIGHTS), SWELLS, "E4004"),
        ("a tar.xz whose weights swell", swelling_xz, SWELLS, "E4004"),
        ("a tar.xz that asks for 3 GiB", greedy_xz, "Memory usage limit", "E4004"),
        # headers
        ("a header of 64 MiB in a tar.gz", lambda path: path.write_bytes(
            gzip.compress(block(tarfile.XHDTYPE, 64 * MIB) + bytes(64 * MIB), 1)),
         "a header or special member of 67108864 bytes", "E4004"),
        ("a gzip header without an end", partial(headers, b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * (12 * MIB)),
         "nothing comes out of 2097152 packed bytes", "E4004"),
        ("a header of 60,000 digits", partial(headers, pax(b"1" * 60_000)), "damaged extended header", "E4004"),
        ("a record of no length", partial(headers, pax(b"0 a=b\n" * 9)), "damaged extended header", "E4004"),
        ("a header below zero, which means all there is",
         lambda path: path.write_bytes(gzip.compress(block(tarfile.XHDTYPE, -512) + bytes(200 * MIB), 1)),
         "a member of -512 bytes", "E4004"),
        ("a member below zero, which leads back to itself", partial(headers, block(tarfile.REGTYPE, -512)),
         "a member of -512 bytes", "E4004"),
        ("a member of exabytes", partial(headers, block(tarfile.REGTYPE, 1 << 80, WEIGHTS) + bytes(9999)),
         "it ends early", "E4004"),
        ("an unknown kind of exabytes", partial(headers, block(b"Z", 1 << 80) + bytes(9999)), "it ends early",
         "E4004"),
        ("50,000 long names", chain_of_long_names, "over 16 headers before one member", "E4004"),
        ("a sparse file", partial(headers, block(tarfile.GNUTYPE_SPARSE, 512, WEIGHTS) + bytes(2048)),
         "a sparse file", "E4004"),
        ("a sparse file with an endless map", endless_sparse_map, "a sparse file", "E4004"),
        ("a sparse file by extended header", partial(headers, pax(record("GNU.sparse.major", "1"))),
         "sets GNU.sparse.major", "E4004"),
        ("a size by extended header", partial(headers, pax(record("size", "-5"))), "sets size", "E4004"),
        # kinds of members
        ("a symbolic link in a tar", partial(special, tarfile.SYMTYPE), A_LINK, "E4004"),
        ("a hard link in a tar", partial(special, tarfile.LNKTYPE), A_LINK, "E4004"),
        ("a device in a tar", partial(special, tarfile.CHRTYPE), A_LINK, "E4004"),
        ("a pipe in a tar", partial(special, tarfile.FIFOTYPE), A_LINK, "E4004"),
        ("a folder in a tar", partial(special, tarfile.DIRTYPE), A_LINK, "E4004"),
        ("a symbolic link in a zip", link_in_zip, A_LINK, "E4004"),
        # numbers of members
        ("a part twice in a zip", partial(zip_of, [*PARTS, (CONFIG, b"other")]), f"has {CONFIG} twice", "E4004"),
        ("a part twice in a zip, in another folder", partial(zip_of, [*PARTS, ("x/" + CONFIG, b"other")]),
         f"has {CONFIG} twice", "E4004"),
        ("a part twice in a tar", partial(tar_of, [*PARTS, (CONFIG, b"other")]), f"has {CONFIG} twice", "E4004"),
        ("10,000 members in a zip", partial(zip_of, NUMBERED), "has over 1000 members", "E4004"),
        ("10,000 members in a tar", partial(tar_of, NUMBERED, mode="w:gz"), "has over 1000 members", "E4004"),
        ("100,000 entries in a zip's directory", directory_of_100_000, "a directory of 4700000 bytes", "E4004"),
        # lies and damage
        ("a zip that says 0 bytes", partial(patched_zip, 22, 24, bytes(4)), "", "E4004"),
        ("a zip that says 4 GB", partial(patched_zip, 22, 24, b"\xff" * 4), "peft_type is None", "E4002"),
        ("a zip64 that says exabytes", zip64_that_lies, "", "E4004"),
        ("an encrypted zip", partial(patched_zip, 6, 8, b"\1"), "encrypted", "E4004"),
        ("a zip packed by an unknown method", partial(patched_zip, 8, 10, b"\x63"), "packed by method 99", "E4004"),
        ("a truncated tar.gz", partial(truncated, gzip.compress), BROKEN, "E4004"),
        ("a truncated tar.bz2", partial(truncated, bz2.compress), BROKEN, "E4004"),
        ("a truncated tar.xz", partial(truncated, lzma.compress), BROKEN, "E4004"),
        ("a truncated tar", partial(truncated, bytes), BROKEN, "E4004"),
        # nothing in it
        ("an archive in an archive", nested, "it holds no adapter", "E4004"),
        ("a pickled adapter", partial(zip_of, [PARTS[0], ("adapter_model.bin", pickle.dumps(os.getcwd))]),
         f"has no {WEIGHTS}", "E4004"),
        ("an empty zip", partial(zip_of, []), "it holds no adapter", "E4004"),
        ("an empty file", partial(headers, b""), "neither a zip nor a tar", "E4004"),
        ("zeros", partial(headers, bytes(5000)), "neither a zip nor a tar", "E4004"),
        ("a text", partial(headers, b"not an archive" * 100), "neither a zip nor a tar", "E4004"),
        ("the beginning of a zip", partial(headers, b"PK\x03\x04"), "neither a zip nor a tar", "E4004"),
        ("no gzip behind its first bytes", partial(headers, b"\x1f\x8b\x08rubbish"), "", "E4004"),
        ("no bzip2 behind its first bytes", partial(headers, b"BZh9x"), "", "E4004"),
        ("no xz behind its first bytes", partial(headers, b"\xfd7zXZ\0rubbish"), "", "E4004"),
        # whole archives of what is no adapter
        ("names that lead out", partial(zip_of, LEADING_OUT), "peft_type is None", "E4002"),
        ("names that lead out of a tar", partial(tar_of, LEADING_OUT), "peft_type is None", "E4002"),
        ("a pattern for a configuration", partial(zip_of, [
            (CONFIG, b'{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": "(a+)+$"}'), PARTS[1]]),
         "target_modules must be a list", "E4002"),
    )
]  # fmt: skip
