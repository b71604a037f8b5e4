"""Files and folders on a disk that may fill up, under names that others may read and lock at any moment.

Whatever is read under its name is whole: it is written aside, then renamed. `written_aside` does so for a file,
`folder_written_aside` for a folder. This is also the one place that knows how to lock.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from alpaca.errors import AlpacaError, FetchFailed, is_full_disk
from alpaca.words import size_text

_CHUNK = 1 << 20
_LOCK_SECONDS = 0.05  # between two tries to take a lock
FULL = 4_000_000  # bytes; where fewer are free, a writer that says nothing of it has met the end of the disk


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Yield a hidden path beside the file `target` to write to; on success it becomes `target`, else it is removed.

    What a killed process leaves begins with ``.saving-``; a fine-tune clears such names out of its folder.
    """
    aside = target.with_name(f".saving-{target.name}.{os.getpid()}")
    try:
        yield aside
        _sync(aside)
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def folder_written_aside(target: Path, refusal: type[AlpacaError]) -> Iterator[Path]:
    """Yield a hidden folder beside `target` to write into; on success it becomes `target`, on an error it is removed.

    An older `target` is moved away before and removed after, so under that name there is never a mixture. Raises
    `refusal` while another process writes the same.
    """
    partial, old = target.with_name(f".{target.name}.partial"), target.with_name(f".{target.name}.old")
    with claimed(partial, refusal):
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        for path in partial.rglob("*"):
            if path.is_file():
                _sync(path)
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            os.replace(target, old)
        os.replace(partial, target)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Have the disk hold what was written: the rename must not reach it before the contents do."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


# --- locks --------------------------------------------------------------------------------------------------------
@contextmanager
def locked(path: Path, busy: Callable[[float], None]) -> Iterator[None]:
    """While no other process or thread has the lock of `path`: a folder that is there, or a file, made if need be.

    While another has it, `busy` is called again and again with the seconds waited so far: it may say so, or raise to
    give up. The lock ends with its process, so one that was killed blocks nobody. File systems that lock nothing (some
    NFS) do without. Who has the lock of a file may remove the file.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    started = time.monotonic()
    while (handle := _take(path, flags)) is None:
        busy(time.monotonic() - started)
        time.sleep(_LOCK_SECONDS)
    try:
        yield
    finally:
        os.close(handle)


def is_locked(path: Path) -> bool:
    """Whether a living process has the lock of `path`. Raises OSError where the file system locks nothing."""
    from filelock import lock_descriptor

    handle = os.open(path, os.O_RDONLY)
    try:
        return not lock_descriptor(handle, blocking=False)
    finally:
        os.close(handle)


def _take(path: Path, flags: int) -> int | None:
    """The open lock of `path`; None where another has it, or removed it as it was opened."""
    from filelock import lock_descriptor  # here, because its import takes a tenth of a second

    handle = os.open(path, flags, 0o666)
    try:
        taken = lock_descriptor(handle, blocking=False)
    except OSError:  # nothing can be locked here
        return handle
    opened = os.fstat(handle)
    if taken and (opened.st_nlink or stat.S_ISDIR(opened.st_mode)):
        return handle
    os.close(handle)
    return None


@contextmanager
def claimed(folder: Path, refusal: type[AlpacaError]) -> Iterator[Path]:
    """An empty `folder` that nobody else writes to; whatever an interrupted run left in it is cleared first.

    Raises `refusal` while another process writes to it. The lock is on the folder itself.
    """

    def busy(waited: float) -> None:
        raise refusal(f"another process is writing {folder}; wait for it to end, then run this again")

    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, busy):
        for entry in folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        yield folder


# --- room ---------------------------------------------------------------------------------------------------------
def free_space(folder: Path) -> int:
    """Bytes free where `folder` is or will be."""
    return shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free


def ran_out(error: BaseException, folder: Path) -> bool:
    """Whether something failed because the disk of `folder` is full: some writers fail there and don't say so."""
    return is_full_disk(error) or free_space(folder) < FULL


@contextmanager
def room_for(needed: int, folder: Path, purpose: str) -> Iterator[None]:
    """Refuse what the disk of `folder` has no room for; where it fills up midway, the words are the same.

    `needed` is in bytes. Raises FetchFailed.
    """
    advice = "Free some room, or set ALPACA_CACHE to a folder on a larger disk"
    free = free_space(folder)
    if free < needed:
        raise FetchFailed(
            f"{folder} has {size_text(free)} free; to {purpose}, {size_text(needed)} are needed. {advice}"
        )
    try:
        yield
    except OSError as error:
        if not is_full_disk(error) and error.errno != errno.EFBIG:  # more than a file may have here
            raise
        free = free_space(folder)
        raise FetchFailed(
            f"{folder} has no room left ({error.strerror}; {size_text(free)} free); to {purpose}, {size_text(needed)} "
            f"were needed. {advice}. What was downloaded stays, and the next start resumes from there"
        ) from None


# --- contents -----------------------------------------------------------------------------------------------------
def hash_file(path: Path, *algorithms: str, update: Callable[[int], None] = lambda done: None) -> dict[str, str]:
    """Hex digests of a file by algorithm name, in one reading; `update` is called with the bytes just read."""
    digests = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            for digest in digests.values():
                digest.update(chunk)
            update(len(chunk))
    return {name: digest.hexdigest() for name, digest in digests.items()}
