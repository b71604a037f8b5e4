"""Files and folders on a disk that may fill up, under names that others may read at any moment."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from alpaca.errors import FetchFailed, is_full_disk
from alpaca.words import size_text

_CHUNK = 1 << 20


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Yield a hidden path beside `target` to write to; on success it becomes `target`, on an error it is removed."""
    aside = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        yield aside
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)


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
            f"were needed. {advice}. What was downloaded stays, and the next start resumes from there"
        ) from None


def hash_file(path: Path, *algorithms: str, update: Callable[[int], None] = lambda done: None) -> dict[str, str]:
    """Hex digests of a file by algorithm name, in one reading; `update` is called with the bytes just read."""
    digests = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            for digest in digests.values():
                digest.update(chunk)
            update(len(chunk))
    return {name: digest.hexdigest() for name, digest in digests.items()}
