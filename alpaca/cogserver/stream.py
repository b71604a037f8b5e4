"""One of several predictions at once: its text streamed live, its cancellation noticed, its logs and metrics its own.

Cog 0.23.1 sends what an async `run` yields only at the end. A plain generator that an async `run` returns is sent
piece by piece, but Cog reads it on a thread of its own, outside the prediction's context, and a cancellation then
reaches nothing but the future that asyncio.run_coroutine_threadsafe gave Cog. Both are mended here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Generator, Iterator
from concurrent.futures import Future
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any
from weakref import ref

from alpaca.cancellation import Cancellation, Cancelled
from alpaca.errors import AlpacaError

_current: ContextVar[Cancellation] = ContextVar("alpaca_cancellation")


def current_cancellation() -> Cancellation:
    """This prediction's; outside one, or where watch_cancellations() was not called, one that nobody requests."""
    return _current.get(None) or Cancellation()


def watch_cancellations() -> None:
    """Let the predictions of this process notice that they are cancelled. Call it once, in setup()."""
    submit = asyncio.run_coroutine_threadsafe

    def submit_watched(coro: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> Future[Any]:
        cancellation = Cancellation()
        token = _current.set(cancellation)  # the task copies this context
        try:
            future = submit(coro, loop)
        finally:
            _current.reset(token)
        future.cancel = partial(_cancel, ref(future), cancellation)  # type: ignore[method-assign]
        return future

    asyncio.run_coroutine_threadsafe = submit_watched


def _cancel(future: ref[Future[Any]], cancellation: Cancellation) -> bool:
    """What Cog calls. The future is weakly held: it carries this function, and a cycle would keep it alive."""
    cancellation.request()
    target = future()
    return target is not None and Future.cancel(target)


def in_context(pieces: Callable[[Cancellation], Generator[str, None, None]]) -> Any:
    """Call in the async `run`, return the result: `pieces` runs in the prediction's context, on Cog's thread."""
    context, cancellation = copy_context(), current_cancellation()

    def output() -> Iterator[str]:
        generator = context.run(pieces, cancellation)
        try:
            with coded_once():
                while not cancellation.requested:
                    try:
                        piece = context.run(next, generator)
                    except (StopIteration, Cancelled):
                        break
                    yield piece
        finally:
            context.run(generator.close)

    return output()  # Cog streams a real generator only, no other iterator


@contextlib.contextmanager
def coded_once() -> Iterator[None]:
    """Cog shows an error as its type's name and its text, and both of ours hold that name: raise one whose type's name
    is code and name, and whose text is the rest."""
    try:
        yield
    except AlpacaError as error:
        raise type(f"{error.code} {type(error).__name__}", (Exception,), {})(error.message) from None
