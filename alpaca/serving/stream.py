"""The stream between the engine's thread and whoever reads an answer, in plain threads or in asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from dataclasses import dataclass
from enum import StrEnum

POLL_SECONDS = 0.05  # how often a waiting reader comes back to Python, where a cancellation can reach it


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"  # the model ended it, or a stop string
    LENGTH = "length"  # max_tokens, or the end of the context; not an error
    CANCELLED = "cancelled"  # the reader closed the stream
    FAILED = "failed"  # the stream raises the error


@dataclass(frozen=True)
class Usage:
    """What one answer took; times in seconds from the moment it was submitted."""

    input_tokens: int
    output_tokens: int
    reused_tokens: int
    """Of the prompt, those whose keys and values were in the cache already."""
    queued: float
    """Until its turn came: it got a slot, or ended without one."""
    first_token: float | None
    total: float
    batch_size: float
    """How many answers took part in its steps, on average."""
    seed: int


@dataclass(frozen=True)
class Chunk:
    """A piece of answer number `index`. The last piece of each answer, and only that, has `finish` and `usage`."""

    text: str
    index: int = 0
    finish: FinishReason | None = None
    usage: Usage | None = None


class Stream:
    """The chunks of one request, as an iterator or an async iterator. Close it early and the request is cancelled.

    It ends after the terminal chunk of the last answer, or raises what the request failed with.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Chunk | BaseException | None] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._over = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready: asyncio.Event | None = None

    # --- the engine's side ---
    @property
    def cancelled(self) -> bool:
        """Whether the reader wants no more."""
        return self._cancelled.is_set()

    def put(self, chunk: Chunk) -> None:
        self._put(chunk)

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more comes; with `error`, the reader gets it raised."""
        self._put(error)

    def _put(self, item: Chunk | BaseException | None) -> None:
        self._queue.put(item)
        loop, ready = self._loop, self._ready
        if loop is not None and ready is not None:
            with contextlib.suppress(RuntimeError):  # the reader's loop is closed: nobody waits
                loop.call_soon_threadsafe(ready.set)

    # --- the reader's side ---
    def close(self) -> None:
        """Cancel what is left of the request. Closing a finished stream does nothing."""
        self._over = True
        self._cancelled.set()

    async def aclose(self) -> None:
        self.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Chunk:
        while not self._over:
            try:
                item = self._queue.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            chunk = self._take(item)
            if chunk is not None:
                return chunk
        raise StopIteration

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Chunk:
        if self._ready is None:
            self._ready = asyncio.Event()
            self._loop = asyncio.get_running_loop()
        while not self._over:
            self._ready.clear()
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                await self._ready.wait()
                continue
            chunk = self._take(item)
            if chunk is not None:
                return chunk
        raise StopAsyncIteration

    def _take(self, item: Chunk | BaseException | None) -> Chunk | None:
        if isinstance(item, Chunk):
            return item
        self._over = True
        if item is not None:
            raise item
        return None
