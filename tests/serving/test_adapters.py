"""An adapter from a folder, an archive or a URL becomes a folder; what is none is refused and leaves nothing."""

from __future__ import annotations

import tarfile
import threading
import zipfile
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from alpaca.archive import pack
from alpaca.errors import AdapterNotFound, AlpacaError, BadArchive, DownloadRefused
from alpaca.serving.adapters import fetch_adapter, tuned_here
from alpaca.serving.download import ALLOWED_HOSTS
from tests.serving.peft_adapters import make_adapter

FILES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture(scope="module")
def folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny_base, tmp_path_factory.mktemp("adapters") / "a")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def zip_of(folder: Path, archive: Path) -> Path:
    return pack(folder, archive)


def zip_in_folders(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w") as zipped:
        for name in (*FILES, "optimizer.pt"):
            zipped.writestr(f"some/where/{name}", (folder / name).read_bytes() if name in FILES else b"pickled")
    return archive


def tar_of(folder: Path, archive: Path, mode: str = "w") -> Path:
    with tarfile.open(archive, mode) as tar:
        for name in FILES:
            tar.add(folder / name, f"./{name}")
    return archive


@pytest.mark.parametrize(
    "make", [zip_of, zip_in_folders, tar_of, partial(tar_of, mode="w:gz")], ids=["zip", "nested", "tar", "tar.gz"]
)
def test_an_archive_of_any_kind_is_unpacked_once(
    folder: Path, tmp_path: Path, cache: Path, make: Callable[[Path, Path], Path]
) -> None:
    archive = make(folder, tmp_path / "archive")
    found = fetch_adapter(str(archive), cache)
    for name in FILES:
        assert (found / name).read_bytes() == (folder / name).read_bytes()
    before = (found / FILES[0]).stat().st_mtime_ns
    assert fetch_adapter(str(archive), cache) == found
    assert (found / FILES[0]).stat().st_mtime_ns == before
    assert {path.name for path in cache.iterdir()} == {found.name}
    assert not (found / "optimizer.pt").exists()


def test_a_folder_is_taken_as_it_is(folder: Path, cache: Path) -> None:
    assert fetch_adapter(str(folder), cache) == folder
    assert not cache.exists()


def test_a_url_is_downloaded_and_unpacked(
    folder: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    pack(folder, shared / "adapter.zip")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(shared))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/adapter.zip"
        with pytest.raises(DownloadRefused, match=ALLOWED_HOSTS):
            fetch_adapter(url, cache)
        monkeypatch.setenv(ALLOWED_HOSTS, "127.0.0.1")
        found = fetch_adapter(url, cache)
        server.shutdown()
        thread.join()
    assert {path.name for path in found.iterdir()} == set(FILES)
    assert [path.name for path in cache.iterdir()] == [found.name]
    assert found == fetch_adapter(str(shared / "adapter.zip"), cache)


@pytest.mark.parametrize(
    ("source", "error"),
    [("/no/such/thing", AdapterNotFound), ("data:,x", DownloadRefused), ("s3://a/b", DownloadRefused)],
)
def test_what_is_no_adapter_is_refused(source: str, error: type[AlpacaError], cache: Path) -> None:
    with pytest.raises(error):
        fetch_adapter(source, cache)


def test_a_folder_without_weights_names_what_is_missing(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(AdapterNotFound, match=r"no adapter_model\.safetensors"):
        fetch_adapter(str(tmp_path), cache)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"not an archive" * 100], ids=["empty", "cut", "text"])
def test_a_broken_archive_leaves_nothing_behind(content: bytes, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "broken.zip").write_bytes(content)
    with pytest.raises(BadArchive, match=r"broken\.zip"):
        fetch_adapter(str(tmp_path / "broken.zip"), cache)
    assert list(cache.iterdir()) == []


def test_what_finetune_left_is_the_default_unless_something_was_said(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COG_WEIGHTS", raising=False)
    assert tuned_here(tmp_path) is None
    made = make_adapter(tiny_base, tmp_path / "lora-alpaca", template="alpaca")
    assert tuned_here(tmp_path) == made
    monkeypatch.setenv("COG_WEIGHTS", "")
    assert tuned_here(tmp_path) is None
