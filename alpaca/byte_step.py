"""A step over many bytes: whether the disk has room for it, and what is said while it runs."""

from __future__ import annotations

import errno
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from alpaca.convert.progress import byte_bar, say, size_text
from alpaca.errors import FetchFailed, is_full_disk

LOG_SECONDS = 10.0  # between two lines in a log


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
def room_for(needed: int, folder: Path, purpose: str) -> Iterator[None]:
    """Refuse what the disk of `folder` has no room for; where it fills up midway, the words are the same.

    `needed` is in bytes. Raises FetchFailed.
    """
    advice = "Free some room, or set ALPACA_CACHE to a folder on a larger disk"
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise FetchFailed(
            f"{folder} has {size_text(free)} free; to {purpose}, {size_text(needed)} are needed. {advice}"
        )
    try:
        yield
    except OSError as error:
        if not is_full_disk(error) and error.errno != errno.EFBIG:  # more than a file may have here
            raise
        free = shutil.disk_usage(folder).free
        raise FetchFailed(
            f"{folder} has no room left ({error.strerror}; {size_text(free)} free); to {purpose}, {size_text(needed)} "
            f"were needed. {advice}. What was downloaded stays, and the next start goes on from there"
        ) from None
