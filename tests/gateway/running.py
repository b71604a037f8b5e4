"""Gateways and small Cog models as real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from alpaca.cogserver.server import free_port
from tests.conftest import ROOT

READY_SECONDS = 60.0

# Another model than ours: it has a prompt and little else, one place, and says what it is told.
OTHER_MODEL = """
import time

from cog import BaseRunner, ConcatenateIterator, Input, streaming


class Runner(BaseRunner):
    def setup(self) -> None: ...

    @streaming
    def run(
        self,
        prompt: str,
        max_tokens: int = Input(default=8, ge=1, le=100000, description="Words."),
        temperature: float = Input(default=0.0, ge=0, le=2, description="Unused."),
    ) -> ConcatenateIterator[str]:
        if prompt.startswith("fail"):
            raise ValueError("the model fails as it was told")
        for number, word in enumerate(prompt.split(" ")[:max_tokens]):
            if number:
                yield " "
            if word.startswith("sleep:"):
                time.sleep(float(word[6:]))
            elif word.startswith("many:"):
                yield "x" * int(word[5:])
            else:
                yield word
"""


def other_model(folder: Path) -> Path:
    """A Cog project of the model above, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "predict.py").write_text(OTHER_MODEL)
    return folder


class RunningGateway:
    """`python -m alpaca.gateway` with options, on a free port; leaving the `with` block ends it."""

    def __init__(self, *options: str, upstreams: Sequence[str], keyless: bool = True) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.keyless = keyless
        self._log = tempfile.TemporaryFile("a+", encoding="utf-8")  # noqa: SIM115
        given = [word for url in upstreams for word in ("--upstream", url)]
        command = [sys.executable, "-m", "alpaca.gateway", "--port", str(self.port), *given, *options]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=self._log, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )

    def __enter__(self) -> RunningGateway:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def wait(self, ready: int = 1) -> RunningGateway:
        """Return once as many servers are ready."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.url}/health", timeout=5).json()["ready"] == ready:
                    return self
            except httpx.TransportError:
                assert self.process.poll() is None, self.log()
            time.sleep(0.1)
        raise AssertionError(f"the gateway was not ready:\n{self.log()}")

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def chat(self, content: str = "hay", *, key: str = "", **fields: Any) -> httpx.Response:
        """One chat request, not streamed."""
        body = {"messages": [{"role": "user", "content": content}], **fields}
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=120)

    def metric(self, name: str) -> float:
        """The value of a metric, labels included in its name; 0 where it has none yet."""
        lines = httpx.get(f"{self.url}/metrics", timeout=10).text.splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == name), 0.0)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error of a refusal, which always has OpenAI's form."""
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["message"]
    return error


class CogProcess:
    """Cog's server of a project on a port of its own, which can be killed and started again there."""

    def __init__(self, project: Path) -> None:
        self.project = project
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "alpaca.cogserver", "serve", "--port", str(self.port)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COG_LOG_LEVEL": "error"}
        self.process = subprocess.Popen(
            command, cwd=self.project, env=environment, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def kill(self) -> None:
        """As a machine that loses its power."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> CogProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
