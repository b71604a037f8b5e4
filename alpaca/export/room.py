"""The place of an export: room is counted before work begins, and what the disk refuses is said in one line."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from alpaca.errors import AlpacaError, ExportRefused, ExportUnwritten
from alpaca.files import folder_written_aside, free_space, ran_out
from alpaca.words import size_text


def check_room(target: Path, needed: int) -> int:
    """The bytes that are free. Raises ExportRefused where they are fewer than `needed`."""
    free = free_space(target)
    if free < needed:
        raise ExportRefused(
            f"{target} needs {size_text(needed)}, what is checked in it included, and {size_text(free)} are free; free "
            "some, or give another --output_dir"
        )
    return free


@contextmanager
def place_for(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target` that takes its name on success; on an error, nothing of it is left.

    Raises ExportUnwritten where no folder can be made, or the disk fills up: libraries say that in many ways.
    """
    made = [parent for parent in target.parents if not parent.exists()]
    try:
        with ExitStack() as stack:
            try:
                folder = stack.enter_context(folder_written_aside(target, ExportRefused))
            except OSError as error:
                raise ExportUnwritten(
                    f"{target} can't be made ({error.strerror}: {error.filename}): give another --output_dir, or have "
                    "the folder that it is to lie in made writable"
                ) from None
            stack.enter_context(_disk_explained(target))
            yield folder
    finally:
        if not target.exists():
            _remove_empty(made)


@contextmanager
def _disk_explained(target: Path) -> Iterator[None]:
    try:
        yield
    except AlpacaError:
        raise
    except Exception as error:
        if ran_out(error, target):
            reason = f"the disk is full ({size_text(free_space(target))} free)"
        elif isinstance(error, OSError) and (error.errno == errno.EFBIG or str(error).endswith(" written")):
            reason = "a file became larger than one may be there"  # NumPy counts what it wrote, and gives no reason
        else:
            raise
        raise ExportUnwritten(
            f"{target} was not kept: {reason}. Free some room, or give another --output_dir"
        ) from error


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders that were made on the way, the deepest first, where nothing else came to lie in them."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
