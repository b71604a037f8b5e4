"""How whoever works for a request learns that nobody wants its answer any more."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Final


class Cancelled(Exception):
    """What was asked for is no longer wanted. No mistake of anybody's: whoever would be told has gone."""


class Cancellation:
    """Requested once, from any thread. Work looks at it (`check`), or is ended by it (`calls`)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._acts: list[Callable[[], object]] = []
        self.requested = False

    def request(self) -> None:
        with self._lock:
            self.requested, acts = True, list(self._acts)
        for act in acts:
            act()

    def check(self) -> None:
        """Raise Cancelled if it was requested."""
        if self.requested:
            raise Cancelled

    @contextlib.contextmanager
    def calls(self, act: Callable[[], object]) -> Iterator[None]:
        """For this long a request calls `act`, on its own thread; at once, if it came before.

        `act` blocks for no time and raises nothing. It may still be called a moment afterwards.
        """
        with self._lock:
            self._acts.append(act)
            requested = self.requested
        try:
            if requested:
                act()
            yield
        finally:
            with self._lock:
                self._acts.remove(act)


NEVER: Final = Cancellation()
"""For work that nobody will cancel."""
