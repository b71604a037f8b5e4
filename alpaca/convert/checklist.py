"""`checklist.chk`: the MD5 sums that come with Meta's checkpoints, in md5sum's format."""

from __future__ import annotations

import re
from pathlib import Path

from alpaca.convert.source import SourceFile, hash_files
from alpaca.errors import ChecksumMismatch, ConversionError
from alpaca.progress import say

_LINE = re.compile(r"([0-9a-fA-F]{32}) [ *](.+)")
_NAMES = ("checklist.chk", "tokenizer_checklist.chk")


def read_checklist(path: Path) -> dict[str, str]:
    """MD5 sums by file name. Raises ConversionError for a line that is no sum, or a name outside the folder."""
    sums: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or Path(match[2]).name != match[2].removeprefix("./"):
            raise ConversionError(f"{path}, line {number}: expected 'MD5  file name', found {line[:80]!r}")
        sums[Path(match[2]).name] = match[1].lower()
    return sums


def verify_files(paths: list[Path]) -> tuple[SourceFile, ...]:
    """Hash the checkpoint's files and compare those that a checklist beside them names.

    Raises ChecksumMismatch naming every file that differs, ConversionError where a listed file is missing.
    """
    sums: dict[Path, str] = {}
    for folder in dict.fromkeys(path.parent for path in paths):
        for checklist in (folder / name for name in _NAMES):
            if checklist.is_file():
                sums |= {folder / name: md5 for name, md5 in read_checklist(checklist).items()}
    listed = sorted(path for path in sums if path in paths or path.suffix == ".pth")
    if missing := [str(path) for path in listed if not path.is_file()]:
        raise ConversionError(
            f"the checklist names files that are not there: {', '.join(missing)}; download them again"
        )
    if not any(path.suffix == ".pth" for path in listed):
        say(f"no checklist.chk beside {paths[0].parent.name}'s weights: their integrity can't be checked")
    records, digests = hash_files(paths, "checking files", "md5")
    wrong = [
        f"{path} (MD5 {digest['md5']}, the checklist says {sums[path]})"
        for path, digest in zip(paths, digests, strict=True) if path in sums and digest["md5"] != sums[path]
    ]  # fmt: skip
    if wrong:
        raise ChecksumMismatch(f"{'; '.join(wrong)}: damaged or incomplete, download again")
    return records
