"""Places for predictions that Cog 0.23.1 loses: with the last one gone its server says BUSY for ever.

It loses one, for instance, to a request whose `id` makes no folder's name. No probe can tell such a server from a busy
one, but this process knows that nothing runs in it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator

from alpaca.health import ask

PAUSE_SECONDS = 10.0  # between two looks
LOOKS = 3  # in a row: BUSY, and nothing ran since the look before


class Places:
    """Counts the predictions that run here and holds the number against what Cog's server says of itself."""

    def __init__(self) -> None:
        self.all_lost = False
        """True from the time that Cog can't take any prediction any more, though none runs."""
        self._lock = threading.Lock()
        self._running = 0
        self._began = 0  # predictions so far
        self._idle_looks = 0
        self._seen = 0  # of those that began, at the last look

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """While a prediction runs."""
        with self._lock:
            self._running += 1
            self._began += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1

    def look(self, status: str) -> None:
        """Compare Cog's status with what runs here."""
        with self._lock:
            idle = self._running == 0 and self._began == self._seen
            self._seen = self._began
            self._idle_looks = self._idle_looks + 1 if idle and status == "BUSY" else 0
            self.all_lost |= self._idle_looks >= LOOKS

    def watch(self) -> None:
        """Look every ten seconds for as long as this process lives."""
        port = int(os.environ.get("PORT") or "5000")

        def work() -> None:
            while not self.all_lost:
                time.sleep(PAUSE_SECONDS)
                self.look(ask(port).status)
            print("Cog has lost all its places for predictions: this server must be restarted", flush=True)

        threading.Thread(target=work, name="places", daemon=True).start()
