"""How long each phase of a server's start took, said in its log as it ends."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil


class Startup:
    """Counts from the start of this process; the first phase, loading Python and the libraries, is over when made."""

    def __init__(self, say: Callable[[str], None] = print) -> None:
        self._say = say
        self._began = self._last = psutil.Process().create_time()
        self.done("libraries")

    def done(self, phase: str) -> None:
        """Say what the phase that ends now took."""
        now = time.time()
        self._say(f"startup: {phase} {now - self._last:.1f} s")
        self._last = now

    def ready(self) -> None:
        """Say what all of it took."""
        self._say(f"startup: ready after {time.time() - self._began:.1f} s")
