"""One process at a time trains into a folder; the next one is told which."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from alpaca.errors import TrainingBusy

LOCK = ".running"  # in the output folder, while a run writes into it


@contextlib.contextmanager
def alone_in(output: Path) -> Iterator[None]:
    """While no other process trains into `output`, which is made. Raises TrainingBusy, naming the one that does."""
    output.mkdir(parents=True, exist_ok=True)
    lock = _locked(output / LOCK)
    try:
        os.ftruncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%H:%M:%S}".encode())
        yield
    finally:
        (output / LOCK).unlink(missing_ok=True)
        os.close(lock)


def refuse_where_busy(output: Path) -> None:
    """Raise TrainingBusy where another process trains into `output`; nothing is made."""
    with contextlib.suppress(FileNotFoundError):
        lock = os.open(output / LOCK, os.O_RDONLY)
        try:
            _lock(lock, fcntl.LOCK_SH, output)
        finally:
            os.close(lock)


def _locked(path: Path) -> int:
    """The open lock. One that its owner removed while it was being opened is left, and the next one made."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(lock, fcntl.LOCK_EX, path.parent)
            if path.exists() and os.path.samestat(os.fstat(lock), path.stat()):
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _lock(lock: int, kind: int, output: Path) -> None:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        who = os.pread(lock, 200, 0).decode(errors="replace") or "another process"
        raise TrainingBusy(
            f"output_dir is {str(output)!r}, and {who} trains into it: wait for that run, or give another --output_dir"
        ) from None
    except OSError:  # file systems that lock nothing (some of NFS) do without
        pass
