"""What a person sees while a report is made: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

Say = Callable[[str], None]
Advance = Callable[[int], None]
EVERY = 10.0  # seconds between lines


@contextmanager
def progress(say: Say, what: str, total: int, unit: str) -> Iterator[Advance]:
    """Yield a function that is told how many more of `total` are done."""
    visible = sys.stderr.isatty()
    bar = tqdm(total=total, desc=f"report      {what}", unit=unit, disable=not visible, leave=False, dynamic_ncols=True)
    done, last = 0, time.monotonic()

    def advance(more: int) -> None:
        nonlocal done, last
        done += more
        bar.update(more)
        if not visible and done < total and time.monotonic() - last >= EVERY:
            last = time.monotonic()
            say(f"report      {what}: {done} of {total} {unit}s")

    with bar:
        yield advance
