"""Where a base and adapters come from: in the image, mounted, or fetched when the container starts or is asked."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from alpaca.adapter.archive import pack
from tests.container.conftest import FP32, Run
from tests.container.container import docker, environment, gateway, mount
from tests.container.test_container_serving import ASK, expected, text
from tests.server.over_http import post
from tests.server.test_weights import file_server

pytestmark = pytest.mark.container


@pytest.fixture
def archive(shelf: Path, tmp_path: Path) -> Path:
    """The tiny base as an archive, made as the README says."""
    subprocess.run(["tar", "cf", tmp_path / "tiny.tar", "-C", shelf / "tiny", "."], check=True)
    return tmp_path / "tiny.tar"


def test_a_base_is_fetched_once_and_then_found_in_the_volume(volume: str, run: Run, archive: Path, shelf: Path) -> None:
    checksum = hashlib.sha256(archive.read_bytes()).hexdigest()
    cache = (*mount(volume, "/cache", readonly=False), *environment(ALPACA_CACHE="/cache"))
    with file_server(archive.parent, gateway()) as host:
        base = environment(BASE_MODEL=f"http://{host}/tiny.tar", BASE_SHA256=checksum)
        first = run(*base, *cache, *FP32).ready()
        assert text(post(first, ASK)).strip() == expected(shelf / "tiny")
        assert "downloading tiny" in first.log()
    second = run(*base, *cache, *FP32, "--read-only", "--tmpfs", "/tmp").ready()  # the web server is gone
    assert text(post(second, ASK)).strip() == expected(shelf / "tiny")
    assert "downloading" not in second.log()


def test_a_base_with_another_checksum_is_not_served(run: Run, archive: Path) -> None:
    with file_server(archive.parent, gateway()) as host:
        server = run(*environment(BASE_MODEL=f"http://{host}/tiny.tar", BASE_SHA256="0" * 64))
        reason = server.wait("SETUP_FAILED")["setup"]["logs"]
    assert "E3102 ChecksumMismatch" in reason and hashlib.sha256(archive.read_bytes()).hexdigest() in reason
    left = server.python("import os; print([f for _, _, files in os.walk('/root/.cache/alpaca') for f in files])")
    assert "tiny" not in left and "safetensors" not in left


def test_an_image_without_a_base_says_what_is_missing(run: Run) -> None:
    server = run("--tmpfs", "/src/weights")
    assert "E3001 BaseNotFound" in server.wait("SETUP_FAILED")["setup"]["logs"]


def test_weights_that_were_cut_short_are_refused_before_they_are_loaded(run: Run, shelf: Path, tmp_path: Path) -> None:
    for path in (shelf / "tiny").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[: -100 if path.suffix == ".safetensors" else None])
    server = run(*mount(tmp_path, "/base"), *environment(BASE_MODEL="/base"))
    assert "E3003 BadBase" in (reason := server.wait("SETUP_FAILED")["setup"]["logs"]) and "cut short" in reason


def test_an_adapter_is_fetched_by_url_where_the_operator_allows_its_host(
    run: Run, on_tiny: tuple[str, ...], shelf: Path, tmp_path: Path
) -> None:
    pack(shelf / "adapters" / "first", tmp_path / "first.zip")
    with file_server(tmp_path, gateway()) as host:
        closed, opened = run(*on_tiny), run(*on_tiny, *environment(ALPACA_ALLOWED_HOSTS=host))
        asked = {**ASK, "adapter": f"http://{host}/first.zip"}
        assert "E4005 DownloadRefused" in post(closed.ready(), asked).json()["error"]
        answer = text(post(opened.ready(), asked)).strip()
    assert answer == expected(shelf / "tiny", shelf / "adapters" / "first")


def test_the_image_answers_without_any_mount_or_network(image: str) -> None:
    """`docker run IMAGE python …`: the library in the image, asked from the command line."""
    command = ("python", "-m", "alpaca.compare", "--adapters", "base", "--prompt", "Hello", "--max_tokens", "4")
    assert "Hello" in docker("run", "--rm", "--network", "none", image, *command)
