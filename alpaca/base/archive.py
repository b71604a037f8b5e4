"""A base in one file: a tar, plain or packed, is unpacked into a flat folder, under limits.

The archive's checksum was verified before, so it is the operator's own. All the same its names lead nowhere else, and
none of its numbers is trusted (`alpaca/tar.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from alpaca.base.check import HUB_FILES, check_base
from alpaca.errors import BadBase
from alpaca.files import room_for
from alpaca.progress import progress
from alpaca.tar import CHUNK, DAMAGE, Packed, Readable, tar_members

MAX_MEMBERS = 10_000
NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}"
HOW = "tar cf llama-7b.tar -C weights/llama-7b ."


@dataclass(frozen=True)
class _File:
    """A member that may be one of the base's files: where it comes in the archive, its size in bytes."""

    name: str
    number: int
    size: int
    is_plain: bool


def unpack_base(archive: Path, folder: Path, name: str) -> None:
    """Write the files of the base in `archive` into the empty `folder`, flat, and check that they are a base's.

    The archive is read twice: it must be seen whole to know which of its files are the base's, and how large they are.
    `name` is what the base is called in messages. Raises BadBase, and FetchFailed where the disk has no room.
    """
    try:
        with archive.open("rb") as packed:
            files = _files(packed)
            needed = sum(file.size for file in files.values())
            what = f"unpacking {len(files)} files of {name}"
            with room_for(needed, folder, f"unpack {name}"), progress(what, needed) as count:
                for number, member in enumerate(tar_members(packed)):
                    if number in files and member.content is not None:
                        _write(member.content, folder / files[number].name, count)
    except DAMAGE as error:
        raise BadBase(f"it can't be read as a tar, plain or gzip: {str(error) or type(error).__name__}") from None
    try:
        check_base(folder)
    except BadBase as error:
        raise BadBase(error.message.replace(str(folder), name)) from None


def _files(packed: Packed) -> dict[int, _File]:
    """The files of the base by their number: those at the archive's top, else those in the one folder with a
    config.json.

    What a base does not need is passed over, and so are deeper folders.
    """
    found: dict[str, list[_File]] = {}
    for number, member in enumerate(tar_members(packed)):
        if number >= MAX_MEMBERS:
            raise BadBase(f"it has over {MAX_MEMBERS} members")
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        if member.name.startswith("/") or ".." in parts:
            raise BadBase(f"its member {member.name[:80]!r} leads out of the folder. Pack the base with: {HOW}")
        *folders, name = parts or [""]
        if len(folders) < 2 and re.fullmatch(NAME, name) and any(fnmatchcase(name, kind) for kind in HUB_FILES):
            file = _File(name, number, member.size, is_plain=member.content is not None)
            found.setdefault("".join(folders), []).append(file)
    tops = sorted(top for top, files in found.items() if any(file.name == "config.json" for file in files))
    if not tops:
        raise BadBase(f"it has no config.json, neither at its top nor in a folder there. Pack the base with: {HOW}")
    if tops[0] and len(tops) > 1:
        raise BadBase(f"it holds several bases: {', '.join(tops[:5])}. Pack one with: {HOW}")
    _check(found[tops[0]])
    return {file.number: file for file in found[tops[0]]}


def _check(files: list[_File]) -> None:
    """Raise BadBase for what is no plain file, and for a name that is there twice."""
    names: set[str] = set()
    for file in files:
        if not file.is_plain:
            raise BadBase(
                f"its {file.name} is a link, a device or a folder, not a file; tar -h --hard-dereference packs files"
            )
        if file.name in names:
            raise BadBase(f"it has {file.name} twice")
        names.add(file.name)


def _write(content: Readable, target: Path, count: Callable[[int], None]) -> None:
    with target.open("xb") as out:
        while chunk := content.read(CHUNK):
            count(out.write(chunk))
        out.flush()
        os.fsync(out.fileno())  # the rename must not reach the disk before the contents do
