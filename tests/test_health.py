"""The probes' command: what it says of every status, of servers that answer nonsense, and of a real one that dies."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from alpaca.cogserver.server import Server, free_port
from alpaca.health import PAUSE_SECONDS, QUESTIONS, Health, ask, check
from tests.conftest import ROOT


class Answers:
    """A server that sends the same bytes to everyone and then closes, and counts who came."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.socket.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.socket.accept()
                with client:
                    client.settimeout(5)
                    client.recv(4096)
                    client.sendall(self.answers[min(self.asked, len(self.answers) - 1)])
                    self.asked += 1


def http(body: bytes, length: int | None = None) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body) if length is None else length, body)


def says(status: str, **more: Any) -> bytes:
    return http(json.dumps({"status": status, **more}).encode())


@contextlib.contextmanager
def answering(*answers: bytes) -> Iterator[Answers]:
    server = Answers(*answers)
    try:
        yield server
    finally:
        server.socket.close()


def run(question: str, port: int | str) -> subprocess.CompletedProcess[str]:
    """The command as a probe runs it, in a container's bare environment."""
    environment = {"PATH": os.defpath, "PORT": str(port)}
    command = [sys.executable, "-m", "alpaca.health", question]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


# --- every status -------------------------------------------------------------------------------------------------
YES = {
    "STARTING": {"alive"},
    "READY": {"started", "ready", "alive"},
    "BUSY": {"started", "ready", "alive"},
    "SETUP_FAILED": {"started"},  # then it is not for the start that one waits: the probe for `alive` ends it
    "UNHEALTHY": {"started"},
    "DEFUNCT": {"started"},
    "A_STATUS_OF_A_LATER_COG": {"started", "alive"},
}


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alpaca.health.PAUSE_SECONDS", 0.0)


@pytest.mark.parametrize("status", YES)
@pytest.mark.usefixtures("hasty")
def test_each_question_has_its_answer_in_every_status(status: str) -> None:
    with answering(says(status)) as server:
        answers = {question: check(question, server.port) for question in QUESTIONS}
    assert {question for question, (yes, _) in answers.items() if yes} == YES[status]
    assert {health.status for _, health in answers.values()} == {status}


def test_the_command_says_status_and_reason_in_a_line() -> None:
    logs = (
        "worker setup failed: worker setup failed (slot 0): Setup failed: setup failed: BadBase: E3003 BadBase: no\nuse"
    )
    with answering(says("SETUP_FAILED", setup={"status": "failed", "logs": logs})) as server:
        done = run("ready", server.port)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == "not ready: SETUP_FAILED (BadBase: E3003 BadBase: no use)\n"
    with answering(says("READY", setup={"status": "succeeded", "logs": "much"})) as server:
        done = run("ready", server.port)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ready: READY\n", "")


def test_a_long_reason_is_cut() -> None:
    with answering(says("UNHEALTHY", user_healthcheck_error="x" * 5000)) as server:
        assert len(ask(server.port).reason) == 300


# --- no answer, or nonsense ---------------------------------------------------------------------------------------
NONSENSE = {
    "nothing": b"",
    "not http": b"SSH-2.0-OpenSSH_9.2\r\n",
    "not json": http(b"<html>"),
    "not utf-8": http(b"\xff\xfe\xff"),
    "a list": http(b"[1]"),
    "no status": http(b"{}"),
    "a number": http(b'{"status": 200}'),
    "cut short": http(b'{"status": "READY"', 500),
    "deep": http(b"[" * 100_000),
}


@pytest.mark.parametrize("kind", NONSENSE)
@pytest.mark.usefixtures("hasty")
def test_an_answer_that_makes_no_sense_is_none(kind: str) -> None:
    with answering(NONSENSE[kind]) as server:
        health = ask(server.port)
        assert health.status == "NO_ANSWER" and str(server.port) in health.reason and "\n" not in health.reason
        assert not any(check(question, server.port)[0] for question in QUESTIONS)


@pytest.mark.parametrize("port", ["closed", "99999", "x"])
def test_a_port_where_nobody_listens_is_no_traceback(port: str) -> None:
    port = str(free_port()) if port == "closed" else port
    done = run("ready", port)
    assert done.returncode == 1
    assert port in done.stdout + done.stderr and "Traceback" not in done.stderr


@pytest.mark.usefixtures("hasty")
def test_one_late_answer_ends_no_server() -> None:
    with answering(b"", says("UNHEALTHY"), says("READY")) as server:
        assert check("alive", server.port) == (True, Health("READY"))
    with answering(b"", b"", b"", says("READY")) as server:
        assert not check("alive", server.port)[0]
        assert server.asked == 3


def test_the_other_questions_are_asked_once() -> None:
    with answering(b"", says("READY")) as server:
        assert not check("ready", server.port)[0]
        assert server.asked == 1


def test_the_patience_is_that_of_the_manifests() -> None:
    """They say: ten seconds."""
    assert 2 * PAUSE_SECONDS == 10


# --- a real one ---------------------------------------------------------------------------------------------------
@pytest.mark.server
def test_a_real_server_whose_worker_dies_must_be_restarted_and_ends_when_told(tiny_base: Path, tmp_path: Path) -> None:
    own = {"BASE_MODEL": str(tiny_base), "PRECISION": "fp32", "ALPACA_CACHE": str(tmp_path), "COG_WEIGHTS": ""}
    with Server(project=ROOT, environment={**own, "OMP_NUM_THREADS": "1"}) as server:
        server.wait_ready(180)
        for question in QUESTIONS:
            assert run(question, server.port).returncode == 0, question
        workers = psutil.Process(server.process.pid).children()
        assert workers
        for worker in workers:
            worker.kill()
        assert [run(question, server.port).returncode for question in ("started", "ready", "alive")] == [0, 1, 1]
        server.process.terminate()  # what the health check of deploy/compose.yaml does
        assert server.process.wait(30) == 0
