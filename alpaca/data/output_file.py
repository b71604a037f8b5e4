"""A file that the check writes: beside its place first, so that what has the name is always whole."""

from __future__ import annotations

from pathlib import Path

from alpaca.errors import BadSetting
from alpaca.paths import as_written


def output_path(option: str, given: str, ending: str, source: str, *, new: bool = False) -> Path:
    """`given` as a place to write to. Raises BadSetting for another ending, a missing folder, or the rows' own file.

    With `new`, whatever is there already is refused as well.
    """
    path = as_written(given)
    if path.suffix.lower() != ending:
        raise BadSetting(f"{option} is {given!r}: give a name that ends in {ending}")
    if path.exists() and (path.resolve() == as_written(source).resolve()):
        raise BadSetting(f"{option} is {given!r}: that is the file of rows itself; give another name")
    if path.is_dir():
        raise BadSetting(f"{option} is {given!r}: that is a folder; give the name of a file")
    if new and (path.exists() or path.is_symlink()):
        raise BadSetting(f"{option} is {given!r}: it is there already, and is not overwritten; give a new name")
    if not path.parent.is_dir():
        raise BadSetting(f"{option} is {given!r}: there is no folder {path.parent}; make it first")
    return path
