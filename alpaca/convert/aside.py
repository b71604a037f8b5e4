"""A folder written aside, under a lock, that takes its final name only when it is complete."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alpaca.errors import ConversionError


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """An empty `folder` that nobody else writes to; whatever an interrupted run left in it is cleared first.

    The lock is on the folder itself and dies with the process, so a killed run never blocks the next one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConversionError(
                f"another process is writing {folder}; wait for it to end, then run this again"
            ) from None
        for entry in folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        yield folder
    finally:
        os.close(handle)


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `target` to write into; on success it becomes `target`, on an error it is removed.

    An older `target` is moved away before and removed after, so under that name there is never a mixture.
    """
    partial, old = target.with_name(f".{target.name}.partial"), target.with_name(f".{target.name}.old")
    with claimed(partial):
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        for path in partial.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:  # the rename must not reach the disk before the contents do
                    os.fsync(file.fileno())
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            os.replace(target, old)
        os.replace(partial, target)
    shutil.rmtree(old, ignore_errors=True)
