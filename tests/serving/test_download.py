"""Strangers' URLs: only public addresses, only https, and never more bytes or seconds than allowed.

What bad hosts and bad URLs come to is in test_hostile.py.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from alpaca.cancellation import Cancellation, Cancelled
from alpaca.errors import DownloadRefused
from alpaca.serving.download import ALLOWED_HOSTS, Limits, download
from alpaca.words import shown_url
from tests.serving.hostile.hosts import BODY, Host, running_host


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with running_host() as host:
        yield host


@pytest.mark.parametrize("path", ["ok", "ok-by-redirect", "ok?signature=secret"])
def test_an_allowed_host_is_read(host: Host, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOWED_HOSTS, f"models.example, 127.0.0.1:{host.port}")
    download(host.url(path), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY


def test_the_time_is_limited_as_a_whole(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOWED_HOSTS, "127.0.0.1")
    for path in ("drips", "silent", "endless"):
        with pytest.raises(DownloadRefused, match=r"not done after 0\.3 s"):
            download(host.url(path), tmp_path / "file", Limits(max_bytes=1 << 40, seconds=0.3, idle_seconds=20))


def test_a_slow_host_is_read_as_long_as_enough_comes(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ALLOWED_HOSTS, "127.0.0.1")
    limits = Limits(seconds=0.5, idle_seconds=0.1, least_bytes=1)
    with pytest.raises(DownloadRefused, match=r"not done after 0\.5 s"):
        download(host.url("drips"), tmp_path / "file", limits)


def test_an_archive_that_is_announced_as_packed_is_saved_as_it_is(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ALLOWED_HOSTS, "127.0.0.1")
    download(host.url("adapter.tar.gz"), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"\x1f\x8b as it is"


def test_a_host_that_takes_no_connections_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOWED_HOSTS, "127.0.0.1")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(DownloadRefused, match="can't be fetched"):
            download(f"http://127.0.0.1:{closed.getsockname()[1]}/a.zip", tmp_path / "file")


def test_nothing_runs_on_after_a_download(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOWED_HOSTS, "127.0.0.1")
    for path in ("ok", "missing", "loop"):
        with suppress(DownloadRefused):
            download(host.url(path), tmp_path / "file")
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    assert all(timer.finished.is_set() for timer in timers)


@pytest.mark.parametrize("path", ["ok", "missing", "loop", "drips", "endless", "short", "rubbish", "silent"])
def test_however_a_download_ends_its_socket_is_closed(
    host: Host, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is kept here, and with it everything that its traceback refers to."""
    monkeypatch.setenv(ALLOWED_HOSTS, "127.0.0.1")
    limits, error = Limits(max_bytes=1_000_000, seconds=0.5, idle_seconds=0.2), None
    try:
        download(host.url(path), tmp_path / "file", limits)
    except DownloadRefused as refused:
        error = refused
    assert (error is None) == (path == "ok")
    ends = [one.raddr for one in psutil.Process().net_connections("tcp") if one.raddr]
    assert ("127.0.0.1", host.port) not in ends


def test_a_name_that_no_server_knows(tmp_path: Path) -> None:
    with pytest.raises(DownloadRefused):
        download("https://no-such-host.invalid/a.zip", tmp_path / "file", Limits(seconds=20))


@pytest.mark.parametrize(
    "url", ["https://localhost/a.zip", "https://127.0.0.1/a.zip", "https://no-such-host.invalid/a"]
)
def test_a_client_is_not_told_where_a_name_leads_and_the_log_is(
    url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    host = url.split("/")[2]
    with pytest.raises(DownloadRefused) as refused:
        download(url, tmp_path / "file", Limits(seconds=20))
    assert str(refused.value).endswith(f"{host} is not in the public internet")
    assert f"download refused: {host}: " in capfd.readouterr().out


def test_a_signature_is_not_shown() -> None:
    assert shown_url("https://u:p@host/a.zip?signature=secret#x") == "https://host/a.zip"
    assert len(shown_url("https://host/" + "a" * 5000)) == 120
    assert "secret" not in shown_url("https://u:secret@[::1")


# --- cancelled ----------------------------------------------------------------------------------------------------
def cancelled_once(ready: Callable[[], object], url: str, target: Path) -> None:
    """Cancel the download of `url` when it is `ready`; it must end as cancelled, long before any limit."""
    cancellation = Cancellation()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(download, url, target, Limits(seconds=600, idle_seconds=600), cancellation)
        ready()
        cancellation.request()
        assert isinstance(done.exception(timeout=30), Cancelled)


@pytest.mark.parametrize("path", ["silent", "drips", "drips-headers", "endless", "continues"])
def test_whatever_a_host_does_a_download_ends_when_it_is_cancelled(
    host: Host, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ALLOWED_HOSTS, "127.0.0.1")
    before = host.requests[path]

    def asked() -> None:
        deadline = time.monotonic() + 30
        while host.requests[path] == before:
            assert time.monotonic() < deadline

    cancelled_once(asked, host.url(path), tmp_path / "file")


def test_the_host_sees_a_cancelled_download_end(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOWED_HOSTS, "127.0.0.1")
    cancelled_once(lambda: host.holding.acquire(timeout=30), host.url("held"), tmp_path / "file")
    assert host.left.acquire(timeout=30)


def test_a_connection_that_is_never_answered_ends_when_it_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listener whose queue is full lets the next one wait, as a host does that drops what is sent to it."""
    monkeypatch.setenv(ALLOWED_HOSTS, "127.0.0.1")
    with socket.socket() as full, ExitStack() as queued:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        for _ in range(4):
            other = queued.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(("127.0.0.1", port))

        def unanswered() -> int:
            return sum(one.status == psutil.CONN_SYN_SENT for one in psutil.Process().net_connections("tcp"))

        before = unanswered()

        def connecting() -> None:
            deadline = time.monotonic() + 30
            while unanswered() == before:
                assert time.monotonic() < deadline

        cancelled_once(connecting, f"http://127.0.0.1:{port}/a.zip", tmp_path / "file")


def test_what_was_cancelled_before_asks_nobody(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOWED_HOSTS, "127.0.0.1")
    cancellation, before = Cancellation(), host.requests["ok"]
    cancellation.request()
    with pytest.raises(Cancelled):
        download(host.url("ok"), tmp_path / "file", cancellation=cancellation)
    assert host.requests["ok"] == before
