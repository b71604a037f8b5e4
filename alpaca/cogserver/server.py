"""Cog's HTTP server as a process: its command, its environment, and a server to ask and to stop."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from alpaca.cogserver.entry_points import ENTRY_POINTS, write_schema
from alpaca.cogserver.schema import PREDICT, TRAIN, Endpoint, declared_concurrency
from alpaca.cogserver.webhooks import fenced
from alpaca.errors import ServerFailed
from alpaca.health import NoAnswer, health_check, reason

LOCAL = "127.0.0.1"
STOP_SECONDS = 5.0  # what a server may take to end by itself


def server_command(mode: Endpoint, host: str) -> list[str]:
    """The command that the image runs."""
    return [sys.executable, "-m", "cog.server.http", "--host", host, *(["--x-mode", "train"] if mode is TRAIN else [])]


def server_environment(mode: Endpoint, port: int, project: Path) -> dict[str, str]:
    """The environment it needs. Cog starts its worker as `python` from PATH: that must be this very Python."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, "PATH": path, "PORT": str(port), mode.stub: ENTRY_POINTS[mode]}
    environment["COG_MAX_CONCURRENCY"] = "1"
    if mode is PREDICT:  # an image gets this from the decorator when it is built
        file, name = ENTRY_POINTS[mode].split(":")
        environment["COG_MAX_CONCURRENCY"] = str(declared_concurrency(project / file, name))
    return environment


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((LOCAL, 0))
        return int(probe.getsockname()[1])


def check_port(host: str, port: int) -> None:
    """Raise ServerFailed where nothing can listen on `host` and `port`, in words that say what to do."""
    if not 0 < port < 1 << 16:
        raise ServerFailed(f"port {port} is not a port: from 1 to 65535")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = f"port {port} is in use: end what listens there, or take another one (--port, make serve PORT=…)"
        else:
            reason = f"nothing can listen on {host}, port {port}: {error.strerror or error}"
        raise ServerFailed(reason) from None


class Server:
    """Cog's server as a child process on a free local port; leaving the `with` block ends it and its worker."""

    def __init__(
        self,
        mode: Endpoint = PREDICT,
        *,
        project: Path = Path(),
        environment: dict[str, str] | None = None,
        log: IO[str] | None = None,
    ) -> None:
        """`environment` is added to this process's; without `log` the server's output goes to a temporary file."""
        self.mode = mode
        self.port = free_port()
        self.url = f"http://{LOCAL}:{self.port}"
        self.schema = write_schema(project)
        self._log = log or tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.process = subprocess.Popen(
            server_command(mode, LOCAL),
            cwd=project,
            env=fenced({**server_environment(mode, self.port, project), **(environment or {})}),
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own, to be ended as a whole
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def health(self) -> dict[str, Any]:
        """The health check's answer; status STARTING while there is none yet."""
        try:
            return health_check(self.port)
        except NoAnswer:
            return {"status": "STARTING"}

    def wait_ready(self, timeout: float = 3600.0) -> None:
        """Return once predictions are taken. Raises ServerFailed with the reason the set-up gave."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            health = self.health()
            if health["status"] == "READY":
                return
            if health["status"] in ("SETUP_FAILED", "DEFUNCT"):
                raise ServerFailed(
                    reason(health) or f"the server is {health['status']} and gives no reason:\n{self.log_tail()}"
                )
            if self.process.poll() is not None:
                raise ServerFailed(f"the server ended with status {self.process.returncode}:\n{self.log_tail()}")
            time.sleep(0.1)
        raise ServerFailed(f"the server was not ready after {timeout:g} s")

    def events(self, inputs: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Send one prediction and yield its events (name, data) as they come."""
        body = json.dumps({"input": inputs}).encode()
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        response = self._request("POST", self.mode.path, body, headers)
        if response.status != 200:
            raise ServerFailed(_refusal(response))
        name = ""
        for line in response:
            field, _, value = line.decode().rstrip("\n").partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                yield name, json.loads(value)

    def log_tail(self, lines: int = 20) -> str:
        """The last lines that the server wrote, where they went to the temporary file."""
        if not self._log.seekable():
            return ""
        self._log.seek(0)
        return "\n".join(self._log.read().splitlines()[-lines:])

    def stop(self) -> None:
        """End the server and everything it started."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(LOCAL, self.port)
        connection.request(method, path, body, headers or {})
        return connection.getresponse()


def unwrapped(error: str) -> str:
    """What a failed prediction says, without what the layers of Cog put in front."""
    return error.strip().removeprefix("Prediction failed: ").removeprefix("Generator iteration error: ")


def _refusal(response: http.client.HTTPResponse) -> str:
    text = response.read().decode(errors="replace")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        details = json.loads(text)["detail"]
        text = "; ".join(f"{detail['loc'][-1]}: {detail['msg']}" for detail in details)
    return f"HTTP {response.status}: {text}"
