"""Cog's own HTTP server without Docker, as the image runs it.

    python -m alpaca.cogserver serve [--port 5000]          predictions
    python -m alpaca.cogserver train [--port 5001]          trainings
    python -m alpaca.cogserver predict -i prompt="…"        start it, ask once, stop it
    python -m alpaca.cogserver schema                       the OpenAPI schema, as docs/openapi.json has it

Run it where predict.py and train.py are. It writes .cog/openapi_schema.json, which Cog's command line would make.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import importlib.util
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
from types import ModuleType
from typing import IO, Any

from alpaca.cogschema import (
    PREDICT,
    TRAIN,
    Endpoint,
    Schema,
    declared_concurrency,
    declares_streaming,
    openapi_schema,
)
from alpaca.errors import ConflictingInputs, OutOfRange, ServerFailed, exit_on_error

ENTRY_POINTS = {PREDICT: "predict.py:Runner", TRAIN: "train.py:train"}
MODES = {"serve": PREDICT, "train": TRAIN}
SCHEMA = Path(".cog") / "openapi_schema.json"
LOCAL = "127.0.0.1"
STOP_SECONDS = 5.0  # what a server may take to end by itself


# --- the schema ---------------------------------------------------------------------------------------------------
def read_schema(project: Path) -> Schema:
    """Make the schema of the entry points in `project`. Raises ServerFailed where there are none."""
    from cog._inspector import create_predictor

    entries: dict[Endpoint, Any] = {}
    streaming = False
    for endpoint, stub in ENTRY_POINTS.items():
        file, name = stub.split(":")
        if (project / file).is_file():
            entries[endpoint] = create_predictor(_load(project / file).__name__, name)
            streaming |= endpoint is PREDICT and declares_streaming(project / file, name)
    if not entries:
        raise ServerFailed(f"{project.resolve()} has neither predict.py nor train.py; run this in the project's folder")
    return openapi_schema(entries, streaming=streaming)


def write_schema(project: Path) -> Schema:
    """Make the schema of `project` and write it where the server looks for it, aside first. Returns it."""
    schema = read_schema(project)
    path = project / SCHEMA
    path.parent.mkdir(exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(json.dumps(schema, ensure_ascii=False), encoding="utf-8")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return schema


def schema_text(schema: Schema) -> str:
    """The schema for people: indented, the inputs in the order of the source, the same on every machine."""
    return json.dumps(schema, ensure_ascii=False, indent=2)


def _load(path: Path) -> ModuleType:
    """Import an entry point under a name of its own; `project` may not be the folder this runs in."""
    name = f"_cog_entry_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


# --- the server ---------------------------------------------------------------------------------------------------
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
            env={**server_environment(mode, self.port, project), **(environment or {})},
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own, to be ended as a whole
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def health(self) -> dict[str, Any]:
        """The health check's answer; status STARTING while the port isn't open yet."""
        try:
            answer: dict[str, Any] = json.loads(self._request("GET", "/health-check").read())
        except OSError:
            return {"status": "STARTING"}
        return answer

    def wait_ready(self, timeout: float = 3600.0) -> None:
        """Return once predictions are taken. Raises ServerFailed with the reason the set-up gave."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            health = self.health()
            if health["status"] == "READY":
                return
            if health["status"] in ("SETUP_FAILED", "DEFUNCT"):
                raise ServerFailed(_reason(health.get("setup", {}).get("logs", "")))
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


def _reason(log: str) -> str:
    """What a failed set-up says, without the wrapping that every layer of Cog adds."""
    message = log.strip().rsplit("setup failed: ", 1)[-1]
    return message or "the set-up failed without a word"


def _refusal(response: http.client.HTTPResponse) -> str:
    text = response.read().decode(errors="replace")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        details = json.loads(text)["detail"]
        text = "; ".join(f"{detail['loc'][-1]}: {detail['msg']}" for detail in details)
    return f"HTTP {response.status}: {text}"


# --- the commands -------------------------------------------------------------------------------------------------
def serve(mode: Endpoint, host: str, port: int) -> None:
    """Become Cog's server: this process is replaced, so that signals reach the server itself."""
    write_schema(Path())
    environment = server_environment(mode, port, Path())
    if sys.stderr.isatty():
        environment.setdefault("LOG_FORMAT", "console")  # for people; a collector of logs gets JSON
    print(f"Cog's server ({mode.path}) on http://{host}:{port}; Ctrl-C ends it", file=sys.stderr, flush=True)
    os.execve(sys.executable, server_command(mode, host), environment)


def predict(given: list[str], *, verbose: bool) -> int:
    """Start the server, send one prediction, write the answer to stdout; 0 where it succeeded."""
    with Server(log=sys.stderr if verbose else None) as server:
        inputs = parse_inputs(given, server.schema["components"]["schemas"])
        print("starting the model …", file=sys.stderr, flush=True)
        server.wait_ready()
        completed: dict[str, Any] = {}
        for name, data in server.events(inputs):
            if name == "output":
                print(data["chunk"], end="", flush=True)
            elif name == "completed":
                completed = data
        print(flush=True)
    if completed.get("status") != "succeeded":
        print(f"error: {completed.get('error') or 'the server ended before the answer did'}", file=sys.stderr)
        return 1
    figures = ", ".join(f"{name} {value}" for name, value in completed.get("metrics", {}).items())
    print(figures, file=sys.stderr)
    return 0


def parse_inputs(given: list[str], schemas: Schema) -> dict[str, Any]:
    """Turn name=value texts into inputs of the types that the schema wants."""
    known = schemas[PREDICT.input]["properties"]
    inputs: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            problem = f"there is no input '{name}'" if equals else f"'{text}' is not name=value"
            raise OutOfRange(f"{problem}. Inputs: {', '.join(known)}")
        if name in inputs:
            raise ConflictingInputs(f"{name} is given twice")
        kind = known[name].get("type", "string")
        try:
            inputs[name] = value if kind == "string" else json.loads(value)
        except ValueError:
            raise OutOfRange(f"{name}={value}: a value of type {kind} is wanted") from None
    return inputs


def _end_on_sigterm(signum: int, frame: object) -> None:
    raise SystemExit(128 + signum)


@exit_on_error
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m alpaca.cogserver", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, port in (("serve", 5000), ("train", 5001)):
        command = commands.add_parser(name, help=f"serve {MODES[name].path} until it is stopped")
        command.add_argument("--port", type=int, default=port)
        command.add_argument("--host", default=LOCAL, help="0.0.0.0 lets other machines in (default: %(default)s)")
    commands.add_parser("schema", help="print the OpenAPI schema")
    ask = commands.add_parser("predict", help="answer once and end")
    ask.add_argument("-i", "--input", action="append", default=[], metavar="NAME=VALUE", help="may be repeated")
    ask.add_argument("--verbose", action="store_true", help="show the server's log")
    arguments = parser.parse_args()
    if arguments.command in MODES:
        serve(MODES[arguments.command], arguments.host, arguments.port)
    if arguments.command == "schema":
        print(schema_text(read_schema(Path())))
        return
    signal.signal(signal.SIGTERM, _end_on_sigterm)
    sys.exit(predict(arguments.input, verbose=arguments.verbose))


if __name__ == "__main__":
    main()
