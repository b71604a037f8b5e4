"""Progress for people: a bar on a terminal, one line per step elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def say(message: str) -> None:
    """Print one line at once, so that a log shows it when it happens."""
    print(message, flush=True)


def size_text(n_bytes: int) -> str:
    """Bytes in decimal units, as disks and download pages count them: ``269 MB``."""
    size = float(n_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


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
