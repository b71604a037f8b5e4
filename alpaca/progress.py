"""What a person sees of long work: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from alpaca.words import size_text

Say = Callable[[str], None]
Advance = Callable[[int], None]
LOG_SECONDS = 10.0  # between two lines in a log


def say(message: str) -> None:
    """Print one line at once, so that a log shows it when it happens."""
    print(message, flush=True)


def is_main_process() -> bool:
    """Whether this process prints and writes (rank 0 under torchrun)."""
    return (os.environ.get("RANK") or "0") == "0"


def processes() -> int:
    """How many processes train together (torchrun sets WORLD_SIZE; an empty one is none)."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def say_on_main(line: str) -> None:
    """Print a line once, whatever the number of processes."""
    if is_main_process():
        print(line, flush=True)


@contextmanager
def byte_bar(step: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show `step` while it runs; the value is a function to call with the number of bytes just done."""
    if not sys.stderr.isatty():
        say(f"{step} ({size_text(total)})")
        yield lambda done: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=step, unit="B", unit_scale=True, dynamic_ncols=True) as bar:
        yield lambda done: (bar.update(done), None)[1]


@contextmanager
def byte_step(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Say that `what` begins, how it goes on, and how long it took; the value is called with the bytes just done.

    `total` is in bytes, 0 where it is not known. A terminal gets a bar, a log a line with rate and time left every
    LOG_SECONDS.
    """
    started = said = time.monotonic()
    done = 0
    with byte_bar(what, total) if total else nullcontext(lambda more: None) as update:
        has_bar = total > 0 and sys.stderr.isatty()

        def count(more: int) -> None:
            nonlocal done, said
            update(more)
            done += more
            now = time.monotonic()
            if not has_bar and now - said >= LOG_SECONDS:
                said = now
                say(f"{what}: {_so_far(done, total, max(1e-3, now - started))}")

        yield count
    say(f"{what}: done, {size_text(done)} in {time.monotonic() - started:.1f} s")


def _so_far(done: int, total: int, seconds: float) -> str:
    rate = max(1.0, done / seconds)
    if not total:
        return f"{size_text(done)}, {size_text(round(rate))}/s"
    left = max(0, total - done) / rate
    return f"{size_text(done)} of {size_text(total)}, {size_text(round(rate))}/s, {left:,.0f} s left"


@contextmanager
def progress(say: Say, what: str, total: int, unit: str) -> Iterator[Advance]:
    """Yield a function that is told how many more of `total` are done."""
    from tqdm import tqdm

    visible = sys.stderr.isatty()
    bar = tqdm(total=total, desc=f"report      {what}", unit=unit, disable=not visible, leave=False, dynamic_ncols=True)
    done, last = 0, time.monotonic()

    def advance(more: int) -> None:
        nonlocal done, last
        done += more
        bar.update(more)
        if not visible and done < total and time.monotonic() - last >= LOG_SECONDS:
            last = time.monotonic()
            say(f"report      {what}: {done} of {total} {unit}s")

    with bar:
        yield advance
