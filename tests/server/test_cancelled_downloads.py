"""Predictions whose adapter a slow host sends, on Cog's real server: they keep no place from others."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from alpaca.adapter.archive import pack
from alpaca.cogserver.server import Server
from alpaca.serving.adapters import DOWNLOADS
from alpaca.serving.download import ALLOWED_HOSTS
from tests.server.over_http import Start, events, post
from tests.serving.hostile.hosts import Host, running_host
from tests.serving.peft_adapters import make_adapter

pytestmark = pytest.mark.server
PLACES = 8
ASKED = {"prompt": "hay", "temperature": 0, "max_tokens": 4}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def server(start_server: Start, tiny_base: Path, cache: Path) -> Server:
    return start_server(tiny_base, ALPACA_CACHE=str(cache), **{ALLOWED_HOSTS: "127.0.0.1"})


@pytest.fixture
def host(tiny_base: Path, tmp_path: Path) -> Iterator[Host]:
    """Sends half an adapter, and the rest when it is let go."""
    archive = pack(make_adapter(tiny_base, tmp_path / "adapter"), tmp_path / "adapter.zip").read_bytes()
    with running_host(**dict.fromkeys(("held-a", "held-b"), archive)) as host:
        yield host


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(PLACES) as pool:
        yield pool


def outcome(server: Server, name: str, adapter: str) -> dict[str, Any]:
    """How a streamed prediction ends."""
    *_, (_, completed) = events(server, {**ASKED, "adapter": adapter}, prediction=name)
    return completed


def cancel(server: Server, name: str) -> None:
    assert httpx.post(f"{server.url}/predictions/{name}/cancel").status_code == 200


def wait_until_over(running: list[Future[dict[str, Any]]], count: int) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 60
    while sum(future.done() for future in running) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return [future.result() for future in running if future.done()]


def test_a_slow_host_keeps_half_of_the_places_at_most_and_none_once_they_are_cancelled(
    server: Server, host: Host, cache: Path, pool: ThreadPoolExecutor
) -> None:
    for turn in range(3):  # as often as somebody may like
        names = [f"slow-{turn}-{number}" for number in range(PLACES)]
        running = [pool.submit(outcome, server, name, host.url("held-a")) for name in names]
        refused = wait_until_over(running, PLACES - DOWNLOADS)
        assert host.holding.acquire(timeout=30)
        assert {one["status"] for one in refused} == {"failed"}
        assert all("E4009 DownloadsBusy: " in one["error"] and "ask again later" in one["error"] for one in refused)
        assert post(server, ASKED).json()["status"] == "succeeded"
        assert not host.left.acquire(blocking=False)
        for name, future in zip(names, running, strict=True):
            if not future.done():
                cancel(server, name)
        ended = [future.result(timeout=60) for future in running]
        assert [one["status"] for one in ended if one not in refused] == ["canceled"] * DOWNLOADS
        assert host.left.acquire(timeout=30) and host.requests["held-a"] == turn + 1
    deadline = time.monotonic() + 60
    while any((cache / "adapters").iterdir()) or server.health()["status"] != "READY":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert post(server, ASKED).json()["status"] == "succeeded"


def test_who_waits_on_gets_the_adapter_that_another_one_asked_for_and_left(
    server: Server, host: Host, pool: ThreadPoolExecutor
) -> None:
    names = [f"waits-{number}" for number in range(DOWNLOADS + 1)]
    running = [pool.submit(outcome, server, names[0], host.url("held-b"))]
    assert host.holding.acquire(timeout=30)
    running += [pool.submit(outcome, server, name, host.url("held-b")) for name in names[1:]]
    (refused,) = wait_until_over(running, 1)  # so the others wait
    left = [number for number in range(DOWNLOADS + 1) if not running[number].done()]
    assert "E4009" in refused["error"] and left[0] == 0
    for number in left[:2]:  # the one that began the download, and another
        cancel(server, names[number])
        assert running[number].result(timeout=60)["status"] == "canceled"
    host.let_go.set()
    assert [running[number].result(timeout=60)["status"] for number in left[2:]] == ["succeeded"] * 2
    assert host.requests["held-b"] == 1
