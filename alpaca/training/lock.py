"""One process at a time trains into a folder; the next one is told which."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from alpaca.errors import TrainingBusy
from alpaca.files import is_locked, locked

LOCK = ".running"  # in the output folder, while a run writes into it; it says which


@contextlib.contextmanager
def alone_in(output: Path) -> Iterator[None]:
    """While no other process trains into `output`, which is made. Raises TrainingBusy, naming the one that does."""
    output.mkdir(parents=True, exist_ok=True)
    with locked(output / LOCK, lambda waited: _refuse(output)):
        try:
            who = f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%H:%M:%S}"
            (output / LOCK).write_text(who, encoding="utf-8")
            yield
        finally:
            (output / LOCK).unlink(missing_ok=True)


def refuse_where_busy(output: Path) -> None:
    """Raise TrainingBusy where another process trains into `output`; nothing is made."""
    with contextlib.suppress(OSError):  # no run, or a file system that locks nothing
        if is_locked(output / LOCK):
            _refuse(output)


def _refuse(output: Path) -> None:
    try:
        who = (output / LOCK).read_text(encoding="utf-8", errors="replace")[:200]
    except OSError:
        who = ""
    raise TrainingBusy(
        f"output_dir is {str(output)!r}, and {who or 'another process'} trains into it: wait for that run, or give "
        "another --output_dir"
    )
