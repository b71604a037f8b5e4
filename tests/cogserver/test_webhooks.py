"""Webhooks: over https anywhere, over plain http to the operator's hosts, and never to the server itself."""

from __future__ import annotations

import http.server
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from alpaca.cogserver.server import Server
from alpaca.cogserver.webhooks import CLOSED, EXCEPTIONS, HOSTS, KEPT, PROXIES, fenced, unfence

PREDICTOR = """
import os
from cog import BaseRunner
from alpaca.cogserver.webhooks import unfence

unfence()

class Runner(BaseRunner):
    def run(self, fail: bool = False) -> str:
        if fail:
            raise ValueError("as asked")
        return " ".join(os.environ.get(name, "none") for name in ("HTTP_PROXY", "http_proxy", "NO_PROXY"))
"""


# --- the environment ----------------------------------------------------------------------------------------------
@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*PROXIES, *EXCEPTIONS, HOSTS, KEPT):
        monkeypatch.setenv(name, "")  # so that it is put back afterwards, whatever a test makes of it
        monkeypatch.delenv(name)
    return monkeypatch


def test_plain_http_is_closed_but_for_the_hosts_that_are_named() -> None:
    environment = fenced({"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": "localhost", HOSTS: "hooks.example.com"})
    assert {environment[name] for name in PROXIES} == {CLOSED}
    assert {environment[name] for name in EXCEPTIONS} == {"hooks.example.com"}
    assert not {"HTTPS_PROXY", "https_proxy", "ALL_PROXY"} & environment.keys()


@pytest.mark.parametrize("theirs", [{}, {"HTTP_PROXY": "http://proxy:3128", "no_proxy": "localhost"}])
def test_the_worker_has_the_operators_proxies(outside: pytest.MonkeyPatch, theirs: dict[str, str]) -> None:
    for name, value in fenced(theirs).items():
        outside.setenv(name, value)
    unfence()
    left = {name: os.environ[name] for name in (*PROXIES, *EXCEPTIONS, KEPT) if name in os.environ}
    assert left == theirs


def test_a_closed_proxy_that_an_image_was_started_with_is_undone_in_the_worker(outside: pytest.MonkeyPatch) -> None:
    outside.setenv("HTTP_PROXY", CLOSED)
    unfence()
    assert "HTTP_PROXY" not in os.environ


# --- the server ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    project = tmp_path_factory.mktemp("project")
    (project / "predict.py").write_text(PREDICTOR)
    theirs = {"HTTP_PROXY": "http://proxy.example:3128", HOSTS: "localhost"}
    with Server(project=project, environment={**theirs, "PYTHONPATH": str(Path.cwd())}) as started:
        started.wait_ready(60)
        yield started


@pytest.fixture
def received() -> Iterator[tuple[int, list[str]]]:
    """(port, paths that were posted to it)."""
    posted: list[str] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        yield receiver.server_port, posted
        receiver.shutdown()


def post(server: Server, webhook: str, *, fail: bool = False, asynchronous: bool = False) -> httpx.Response:
    body = {"input": {"fail": fail}, "webhook": webhook, "webhook_events_filter": ["completed"]}
    headers = {"Prefer": "respond-async"} if asynchronous else {}
    return httpx.post(f"{server.url}/predictions", json=body, headers=headers, timeout=60)


def until(come: list[str], count: int) -> bool:
    deadline = time.monotonic() + 30
    while len(come) < count and time.monotonic() < deadline:
        time.sleep(0.05)
    return len(come) >= count


@pytest.mark.server
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("fail", [False, True])
def test_no_webhook_leads_to_the_servers_own_shutdown(
    server: Server, received: tuple[int, list[str]], fail: bool, asynchronous: bool
) -> None:
    port, posted = received
    post(server, f"{server.url}/shutdown", fail=fail, asynchronous=asynchronous)
    post(server, f"http://127.0.0.1:{port}/address", fail=fail, asynchronous=asynchronous)
    # The allowed host's webhook comes last: when it is there, the others were tried.
    post(server, f"http://localhost:{port}/allowed", fail=fail, asynchronous=asynchronous)
    assert until(posted, 1) and posted == ["/allowed"]
    assert server.health()["status"] == "READY" and server.process.poll() is None


@pytest.mark.server
def test_the_worker_of_a_running_server_keeps_the_operators_proxy(server: Server) -> None:
    said = httpx.post(f"{server.url}/predictions", json={"input": {}}, timeout=60).json()
    assert said["output"] == "http://proxy.example:3128 none none"
