"""What comes out of a tar, however it is packed, and how little of a file is read to know that it is none."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from alpaca.tar import CHUNK, MAX_BARREN, PACKED_CHUNK, Damaged, NoTar, tar_members

FILES = {"a": b"first", "long" * 60: os.urandom(3 * CHUNK // 2), "empty": b"", "z": b"last" * 1000}
PACKERS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}

NAMED, COMMENTED = (b"\x1f\x8b\x08" + flag + bytes(6) for flag in (b"\x08", b"\x10"))  # gzip headers up to a text


def tar_of(files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


class Counted(io.FileIO):
    """A file that counts what is read of it."""

    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size) or b""
        self.count += len(data)
        return data


def archive(path: Path, data: bytes) -> Counted:
    path.write_bytes(data)
    return Counted(path)


def contents(file: Counted) -> dict[str, bytes]:
    found = {}
    for member in tar_members(file):
        assert member.content is not None
        found[member.name] = b"".join(iter(lambda member=member: member.content.read(CHUNK), b""))  # type: ignore[misc]
        assert len(found[member.name]) == member.size
    return found


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("piece", [10_000, PACKED_CHUNK, CHUNK])
def test_packed_streams_one_after_another_are_one(tmp_path: Path, packer: str, piece: int) -> None:
    """As `pigz`, `bgzip` and `cat` make them; a stream may begin anywhere in what is read at once."""
    data = tar_of(FILES)
    pieces = [PACKERS[packer](data[at : at + piece]) for at in range(0, len(data), piece)]
    assert contents(archive(tmp_path / "a", b"".join(pieces))) == FILES


@pytest.mark.parametrize("short", range(1, 6))
def test_a_stream_may_begin_across_two_reads(tmp_path: Path, short: int) -> None:
    """The first stream is empty, with a name so long that the second begins a few bytes before a read ends."""
    empty = gzip.compress(b"")[10:]
    name = b"n" * (PACKED_CHUNK - short - 11 - len(empty)) + b"\0"
    first = NAMED + name + empty
    assert len(first) == PACKED_CHUNK - short
    assert contents(archive(tmp_path / "a", first + gzip.compress(tar_of(FILES)))) == FILES


@pytest.mark.parametrize("packer", PACKERS)
def test_padding_behind_a_packed_tar_is_no_part_of_it(tmp_path: Path, packer: str) -> None:
    files = {"a": b"content"}
    without_end = tar_of(files)[:2048].rstrip(b"\0").ljust(1536, b"\0")  # so that it is read to its last byte
    assert contents(archive(tmp_path / "a", PACKERS[packer](without_end) + bytes(5000))) == files


def test_a_size_in_an_extended_header_counts(tmp_path: Path) -> None:
    """Sizes from 8 GiB on stand there, where a tar is written as POSIX has it."""
    files = {"model.safetensors": b"w" * 5000, "z": b"last"}
    record = b"13 size=5000\n"
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, len(record)
    sizeless = tarfile.TarInfo("model.safetensors").tobuf(tarfile.USTAR_FORMAT)
    data = header.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + sizeless + tar_of(files)[512:]
    assert contents(archive(tmp_path / "a", data)) == files


def test_what_is_passed_over_in_a_plain_tar_is_not_read(tmp_path: Path) -> None:
    file = archive(tmp_path / "a", tar_of({"large": bytes(8 * CHUNK), "z": b"last"}))
    assert [member.name for member in tar_members(file)] == ["large", "z"]
    assert file.count < CHUNK


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (NAMED, b"n" * MAX_BARREN),
        (COMMENTED, b"c" * MAX_BARREN),
        (b"", gzip.compress(b"") * (MAX_BARREN // 20)),
        (b"", bz2.compress(b"") * (MAX_BARREN // 14)),
    ],
    ids=["gzip name", "gzip comment", "empty gzip streams", "empty bzip2 streams"],
)
def test_what_gives_nothing_is_not_read_to_its_end(tmp_path: Path, begin: bytes, more: bytes) -> None:
    file = archive(tmp_path / "a", begin + 4 * more)
    with pytest.raises(Damaged, match=f"nothing comes out of {MAX_BARREN} packed bytes"):
        list(tar_members(file))
    assert file.count <= MAX_BARREN + 2 * PACKED_CHUNK


@pytest.mark.parametrize(
    "data",
    [b"", bytes(5000), b"text" * 1000, gzip.compress(b"text" * 1000)],
    ids=["nothing", "zeros", "text", "packed text"],
)
def test_what_is_no_tar_is_called_so(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(NoTar):
        list(tar_members(archive(tmp_path / "a", data)))
