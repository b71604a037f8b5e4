"""An adapter as one file: what goes in, what comes out, and what an archive from a stranger may not do."""

from __future__ import annotations

import gzip
import io
import random
import struct
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from alpaca.adapter import archive
from alpaca.adapter.archive import pack, unpack
from alpaca.cancellation import Cancellation, Cancelled
from alpaca.errors import AdapterNotFound, BadArchive
from tests.serving.peft_adapters import make_adapter

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "alpaca.json"
PARTS = {CONFIG: b'{"r": 1}', WEIGHTS: b"weights" * 500, CARD: b"{}"}


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "deep" / "into"
    folder.mkdir(parents=True)
    return folder


def zip_of(path: Path, members: Iterable[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as zipped:
        for name, content in members:
            zipped.writestr(name, content)
    return path


def tar_of(path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def everything_under(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.is_symlink()}


# --- there and back -----------------------------------------------------------------------------------------------
@pytest.fixture
def adapter(tiny_base: Path, tmp_path: Path) -> Path:
    folder = make_adapter(tiny_base, tmp_path / "adapter", template="alpaca")
    (folder / "report").mkdir()
    (folder / "report" / "training.json").write_text("[]")
    (folder / "checkpoint-2").mkdir()
    for name in ("optimizer.pt", "checkpoint-2/optimizer.pt", "checkpoint-2/adapter_model.safetensors", "notes.txt"):
        (folder / name).write_bytes(b"not for others")
    return folder


def test_packed_are_the_adapter_its_card_and_report_and_nothing_of_the_optimizer(adapter: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(pack(adapter, tmp_path / "a.zip")) as zipped:
        assert sorted(zipped.namelist()) == ["README.md", CONFIG, WEIGHTS, CARD, "report/training.json"]
        for name in zipped.namelist():
            assert zipped.read(name) == (adapter / name).read_bytes()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_unpacked_is_what_was_packed(adapter: Path, tmp_path: Path, into: Path) -> None:
    unpack(pack(adapter, tmp_path / "a.zip"), into)
    assert everything_under(into) == {name: (adapter / name).read_bytes() for name in PARTS}


def test_a_folder_without_an_adapter_is_not_packed_and_an_older_archive_stays(adapter: Path, tmp_path: Path) -> None:
    made = pack(adapter, tmp_path / "a.zip").read_bytes()
    (adapter / WEIGHTS).unlink()
    with pytest.raises(AdapterNotFound, match="there is nothing to pack"):
        pack(adapter, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == made


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_every_kind_of_tar(tmp_path: Path, into: Path, mode: str, form: int) -> None:
    with tarfile.open(tmp_path / "a", mode, format=form) as tar:  # type: ignore[call-overload]
        for name, content in {"out/": b"", **{f"out/{'long' * 20}/{n}": c for n, c in PARTS.items()}}.items():
            info = tarfile.TarInfo(name.rstrip("/"))
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    unpack(tmp_path / "a", into)
    assert everything_under(into) == PARTS


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_both_kinds_of_zip(tmp_path: Path, into: Path, method: int) -> None:
    unpack(zip_of(tmp_path / "a", [("folder/", b""), *PARTS.items()], method), into)
    assert everything_under(into) == PARTS


def test_the_card_may_be_missing_and_the_rest_may_not(tmp_path: Path, into: Path) -> None:
    unpack(zip_of(tmp_path / "a.zip", [(CONFIG, b"{}"), (WEIGHTS, b"")]), into)
    with pytest.raises(BadArchive, match=f"E4004 .*has no {WEIGHTS}: it holds no adapter"):
        unpack(zip_of(tmp_path / "b.zip", [(CONFIG, b"{}")]), into)
    with pytest.raises(BadArchive, match=f"has no {CONFIG}"):
        unpack(zip_of(tmp_path / "c.zip", []), into)


# --- names that lead outside --------------------------------------------------------------------------------------
NAMES = ["../../{}", "/{}", "/tmp/x/{}", "a/../../../{}", "..\\..\\{}", "C:\\x\\{}", "./{}", "~/{}", "a//{}"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", [zip_of, tar_of])
def test_a_member_lands_in_the_folder_whatever_its_name(tmp_path: Path, into: Path, make: object, name: str) -> None:
    made = make(tmp_path / "a", [(name.format(part), content) for part, content in PARTS.items()])  # type: ignore[operator]
    before = everything_under(tmp_path)
    unpack(made, into)
    assert everything_under(into) == PARTS
    assert everything_under(tmp_path) == before | {f"deep/into/{part}": content for part, content in PARTS.items()}


def test_other_members_are_passed_over(tmp_path: Path, into: Path) -> None:
    others = [("../../evil.sh", b"x"), ("optimizer.pt", b"x"), ("README.md", b"x"), ("adapter_model.bin", b"x")]
    unpack(zip_of(tmp_path / "a.zip", [*others, *PARTS.items()]), into)
    assert everything_under(into) == PARTS
    assert not list(tmp_path.rglob("evil.sh"))


# --- too much -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [zip_of, tar_of])
def test_a_member_is_limited_by_the_bytes_really_read(
    tmp_path: Path, into: Path, make: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {CONFIG: 100, CARD: 100, WEIGHTS: 5 << 20}
    monkeypatch.setattr(archive, "MAX_BYTES", limits)
    fits = {CONFIG: b" " * 100, WEIGHTS: bytes(5 << 20)}
    unpack(make(tmp_path / "a", fits.items()), into)  # type: ignore[operator]
    for part in limits:
        bomb = make(tmp_path / part, (fits | {part: bytes(limits[part] + 1)}).items())  # type: ignore[operator]
        with pytest.raises(BadArchive, match=f"{part} is larger than {limits[part]} bytes"):
            unpack(bomb, into)
        assert (into / part).stat().st_size <= limits[part]


def test_a_zip_that_lies_about_sizes(tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory says 10 bytes; the stream holds 50 million."""
    monkeypatch.setattr(archive, "MAX_BYTES", dict.fromkeys(PARTS, 1 << 20))
    path = zip_of(tmp_path / "a.zip", [(WEIGHTS, bytes(50_000_000)), (CONFIG, b"{}")])
    data = path.read_bytes().replace(struct.pack("<L", 50_000_000), struct.pack("<L", 10))
    path.write_bytes(data)
    with pytest.raises(BadArchive):
        unpack(path, into)
    assert sum(len(content) for content in everything_under(into).values()) <= 2 << 20


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_a_header_of_gigabytes_is_not_read_into_memory(tmp_path: Path, into: Path, kind: bytes) -> None:
    """Extended headers and long names are read whole by tar readers; a gigabyte of zeros is a megabyte when packed."""
    info = tarfile.TarInfo("long")
    info.type, info.size = kind, 64 << 20
    path = tmp_path / "a.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as packed:
        packed.write(info.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(64):
            packed.write(bytes(1 << 20))
    with pytest.raises(BadArchive, match=f"a header or special member of {64 << 20} bytes"):
        unpack(path, into)


# --- damage -------------------------------------------------------------------------------------------------------
def test_a_file_that_is_not_there(tmp_path: Path, into: Path) -> None:
    with pytest.raises(BadArchive):
        unpack(tmp_path / "nowhere.zip", into)


MAKERS = {
    "zip": lambda path: zip_of(path, PARTS.items()),
    "zip lzma": lambda path: zip_of(path, PARTS.items(), zipfile.ZIP_LZMA),
    "zip bzip2": lambda path: zip_of(path, PARTS.items(), zipfile.ZIP_BZIP2),
    "tar": lambda path: tar_of(path, PARTS.items(), "w"),
    "tar.gz": lambda path: tar_of(path, PARTS.items(), "w:gz"),
    "tar.bz2": lambda path: tar_of(path, PARTS.items(), "w:bz2"),
    "tar.xz": lambda path: tar_of(path, PARTS.items(), "w:xz"),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_truncated_archive(tmp_path: Path, into: Path, kind: str) -> None:
    data = MAKERS[kind](tmp_path / "a").read_bytes()
    for share in (0.1, 0.3, 0.45):
        (tmp_path / "a").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(BadArchive):
            unpack(tmp_path / "a", into)


class Leaves(Cancellation):
    """Whoever asks for an archive and leaves while it is unpacked: at the third time that it is looked at."""

    looks = 0

    def check(self) -> None:
        self.looks += 1
        if self.looks == 3:
            self.request()
        super().check()


@pytest.mark.parametrize("kind", MAKERS)
def test_what_nobody_wants_any_more_is_not_unpacked_to_its_end(tmp_path: Path, into: Path, kind: str) -> None:
    with pytest.raises(Cancelled):
        unpack(MAKERS[kind](tmp_path / "a"), into, Leaves())
    assert not (into / WEIGHTS).exists() or (into / WEIGHTS).read_bytes() != PARTS[WEIGHTS]


@pytest.mark.parametrize("kind", MAKERS)
def test_changed_bytes_never_do_more_than_be_refused(tmp_path: Path, into: Path, kind: str) -> None:
    data = MAKERS[kind](tmp_path / "a").read_bytes()
    chance = random.Random(0)
    for _ in range(250):
        spoilt = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            spoilt[chance.randrange(len(spoilt))] = chance.randrange(256)
        (tmp_path / "a").write_bytes(spoilt)
        try:
            unpack(tmp_path / "a", into)
        except BadArchive as refused:
            assert str(refused).startswith("E4004 BadArchive: a")
    assert set(everything_under(into)) <= set(PARTS)
