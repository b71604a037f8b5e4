"""A rival as a living process: it loads once, answers when it is its turn, and sleeps in between."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from benchmarks.rivals.environment import ROOT, variables
from benchmarks.rivals.protocol import Question, Ready, Reply


class Worker:
    """A process that speaks protocol.py's language."""

    def __init__(self, name: str, command: Sequence[str], **more: str) -> None:
        """`more`: environment variables. Returns at once; `ready` waits until the rival has loaded."""
        self.name = name
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  (closed with the worker)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, encoding="utf-8",
            cwd=ROOT, env=variables(**more),
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready(self) -> Ready:
        """Wait until the rival has loaded. To be called once, before anything is asked."""
        ready: Ready = self._read()
        return ready

    def ask(self, question: Question) -> Reply:
        """All prompts of `question` at once."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        reply: Reply = self._read()
        return reply

    def close(self) -> None:
        """End the process; it may have ended before."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            if pipe is not None:
                pipe.close()

    def _read(self) -> Any:
        """What the worker says next. Where it has ended, so does this program, with the last of its log."""
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return json.loads(line)
        self._log.seek(0)
        sys.exit(f"{self.name} ended with status {self._process.wait()}:\n{self._log.read()[-3000:]}")
