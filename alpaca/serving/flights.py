"""Work that is done once for all who ask for it at the same time, and for no longer than one of them waits.

It is done on threads of its own, so that whoever is cancelled leaves at once, in whatever state the work is; the
others get its result. When the last one leaves, the work itself is cancelled. A thread ends when there is nothing left
to do, and none keeps the process from ending.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextvars import copy_context
from typing import Generic, TypeVar

from alpaca.cancellation import NEVER, Cancellation

T = TypeVar("T")
Work = Callable[[Cancellation], T]


class Crowded(Exception):
    """As many wait already as may."""


class _Flight(Generic[T]):
    def __init__(self, work: Work[T]) -> None:
        self.future: Future[T] = Future()
        self.cancellation = Cancellation()
        self.waiting = 0
        self._work = work
        self._context = copy_context()  # what is printed belongs to the first who asked

    def run(self) -> None:
        try:
            self.future.set_result(self._context.run(self._work, self.cancellation))
        except BaseException as error:
            self.future.set_exception(error)

    def result(self, cancellation: Cancellation) -> T:
        over = threading.Event()
        self.future.add_done_callback(lambda _: over.set())
        with cancellation.calls(over.set):
            over.wait()
        cancellation.check()
        return self.future.result()


class Flights(Generic[T]):
    """See the top of the file. Any thread may wait."""

    def __init__(self, name: str, *, threads: int, waiting: int | None = None) -> None:
        """`threads` work at the same time, also for what is being cancelled; what comes then waits for one of them.
        `waiting`: how many may wait at the same time, for the same work or not."""
        self._name = name
        self._most_threads = threads
        self._most_waiting = waiting
        self._lock = threading.Lock()
        self._flights: dict[Hashable, _Flight[T]] = {}
        self._queue: deque[_Flight[T]] = deque()
        self.threads = 0
        """That work now, or are about to end."""
        self.waiting = 0
        """That wait now."""

    def wait(self, key: Hashable, work: Work[T], cancellation: Cancellation = NEVER) -> T:
        """What `work` returns, or what it returns to another who asked for the same `key`; its error is raised.

        `work` stops when its own cancellation is requested, as soon as it can. Raises Crowded at once where as many
        wait as may, and Cancelled when `cancellation` is requested.
        """
        flight = self._join(key, work)
        try:
            return flight.result(cancellation)
        finally:
            self._leave(key, flight)

    def _join(self, key: Hashable, work: Work[T]) -> _Flight[T]:
        with self._lock:
            if self.waiting == self._most_waiting:
                raise Crowded
            flight = self._flights.get(key)
            if flight is None or flight.future.done():  # what is over is asked for anew
                flight = self._flights[key] = _Flight(work)
                self._queue.append(flight)
                if self.threads < self._most_threads:
                    threading.Thread(target=self._run, name=self._name, daemon=True).start()
                    self.threads += 1
            flight.waiting += 1
            self.waiting += 1
        return flight

    def _leave(self, key: Hashable, flight: _Flight[T]) -> None:
        with self._lock:
            self.waiting -= 1
            flight.waiting -= 1
            if flight.waiting:
                return
            if self._flights.get(key) is flight:
                del self._flights[key]
            with contextlib.suppress(ValueError):  # it has begun
                self._queue.remove(flight)
        flight.cancellation.request()

    def _run(self) -> None:
        while (flight := self._next()) is not None:
            flight.run()
            del flight  # and with it the result, which may keep something in use

    def _next(self) -> _Flight[T] | None:
        with self._lock:
            if self._queue:
                return self._queue.popleft()
            self.threads -= 1
            return None
