"""The tools that exports are for, started here to be asked: llama.cpp (by xllamacpp) and vLLM."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from alpaca.errors import CheckUnavailable
from alpaca.export.openai_server import OpenAIServer, wait_until_ready
from alpaca.export.vllm_folder import SCRIPT
from alpaca.paths import PROJECT
from alpaca.words import shown

JUDGES = PROJECT / ".venv-judges"
CONTEXT = 8192  # tokens for four questions at once
VLLM_CONTEXT = 2048
START_SECONDS = 300.0
_SERVER = Path(__file__).with_name("llamacpp_server.py")


def llamacpp_python() -> str | None:
    """A Python that has xllamacpp: this one, or that of `make test-export`; None where there is none."""
    if find_spec("xllamacpp") is not None:
        return sys.executable
    python = JUDGES / "llamacpp" / "bin" / "python"
    return str(python) if python.exists() else None


def vllm_command() -> str | None:
    """The program vllm: $VLLM, the one that is installed, or that of `make test-export`; None without any."""
    named = os.environ.get("VLLM") or shutil.which("vllm")
    judge = JUDGES / "vllm" / "bin" / "vllm"
    return named or (str(judge) if judge.exists() else None)


@contextmanager
def llamacpp(model: Path, adapter: Path | None = None) -> Iterator[OpenAIServer]:
    """llama.cpp's server on a GGUF file, perhaps with an adapter. Raises CheckUnavailable without xllamacpp, or where
    it does not start."""
    python = llamacpp_python()
    if python is None:
        raise CheckUnavailable("llama.cpp is not here: pip install xllamacpp, or make test-export")
    command = [python, str(_SERVER), str(model), str(CONTEXT), *([str(adapter), "1"] if adapter else [])]
    with tempfile.TemporaryFile("w+") as log, _started(command, log, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address.startswith("http"):
            raise CheckUnavailable(f"llama.cpp did not start on {model.name}: {_end_of(log)}")
        wait_until_ready(address, lambda: process.poll() is None, START_SECONDS, lambda: _end_of(log))
        yield OpenAIServer(address, name=f"llama.cpp on {model.name}" + (f" with {adapter.name}" if adapter else ""))


@contextmanager
def vllm(folder: Path) -> Iterator[str]:
    """The URL of vLLM, started by the folder's own serve.sh. Raises CheckUnavailable without vLLM, or where it does not
    start."""
    program = vllm_command()
    if program is None:
        raise CheckUnavailable("vLLM is not here: install it, name it in VLLM, or give the --url of a server")
    port = _free_port()
    command = [str(folder / SCRIPT), "--host", "127.0.0.1", "--port", str(port), "--max-model-len", str(VLLM_CONTEXT)]
    extra = {"VLLM": program, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "0")}
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log, _started(command, log, env=os.environ | extra) as process:
        wait_until_ready(url, lambda: process.poll() is None, START_SECONDS, lambda: _end_of(log))
        yield url


@contextmanager
def _started(
    command: list[str], log: IO[str], *, stdin: int | None = None, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A process in a group of its own, which is ended with all that it started."""
    stdout = subprocess.PIPE if stdin is not None else log
    process = subprocess.Popen(
        command, stdin=stdin or subprocess.DEVNULL, stdout=stdout, stderr=log, env=env, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _end_of(log: IO[str]) -> str:
    log.seek(0)
    lines = [line.strip() for line in log.read().splitlines() if line.strip()]
    return shown(" | ".join(lines[-3:])[-600:], 600) or "it said nothing"


def _free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])
