"""Where a base came from: `source.json` in its folder, and whether a conversion can be skipped because of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from alpaca import __version__
from alpaca.errors import ConversionError
from alpaca.files import hash_file
from alpaca.progress import progress

FILE_NAME = "source.json"


@dataclass(frozen=True)
class SourceFile:
    """One input file: name, size in bytes, time of change in ns, and SHA-256."""

    name: str
    size: int
    mtime_ns: int
    sha256: str

    def is_still(self, path: Path) -> bool:
        """True if `path` has this content; it is read only where size fits and the time of change does not."""
        if path.name != self.name or not path.is_file() or path.stat().st_size != self.size:
            return False
        return path.stat().st_mtime_ns == self.mtime_ns or hash_file(path, "sha256")["sha256"] == self.sha256


@dataclass(frozen=True)
class Source:
    """What a base was made from (`files`, `options`) and what was written (`made`: file name → size in bytes)."""

    kind: str
    files: tuple[SourceFile, ...]
    options: Mapping[str, object]
    made: Mapping[str, int] = field(default_factory=dict)
    alpaca_version: str = __version__

    def save(self, folder: Path) -> None:
        """Write `source.json` into `folder`."""
        (folder / FILE_NAME).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    def same_inputs(self, paths: list[Path], options: Mapping[str, object]) -> bool:
        """True if converting `paths` with `options` would give this base again."""
        return (
            dict(self.options) == dict(options)
            and len(self.files) == len(paths)
            and all(file.is_still(path) for file, path in zip(self.files, paths, strict=True))
        )

    def missing(self, folder: Path) -> list[str]:
        """Names of files that were written once and are gone, or have another size now."""
        return [
            name for name, size in self.made.items()
            if not (folder / name).is_file() or (folder / name).stat().st_size != size
        ]  # fmt: skip


def read_source(folder: Path) -> Source | None:
    """The record in `folder`; None where there is none or it can't be understood."""
    try:
        record = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
        files = tuple(SourceFile(**file) for file in record.pop("files"))
        return Source(files=files, **record)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def hash_files(paths: list[Path], step: str, *extra: str) -> tuple[tuple[SourceFile, ...], list[dict[str, str]]]:
    """Read every file once, with progress. Returns their records, and the digests (SHA-256 and `extra`) per file."""
    digests = []
    with progress(step, sum(path.stat().st_size for path in paths)) as update:
        for path in paths:
            digests.append(hash_file(path, "sha256", *extra, update=update))
    records = []
    for path, digest in zip(paths, digests, strict=True):
        stat = path.stat()
        records.append(SourceFile(path.name, stat.st_size, stat.st_mtime_ns, digest["sha256"]))
    return tuple(records), digests


def already_converted(target: Path, paths: list[Path], options: Mapping[str, object]) -> bool:
    """True if `target` is complete and was made from `paths` with `options`; False if it may be written.

    Raises ConversionError if there is something under that name that must not be replaced.
    """
    if not target.exists():
        return False
    source = read_source(target) if target.is_dir() else None
    if source is None:
        raise ConversionError(
            f"{target} exists and was not made by this converter (it has no readable {FILE_NAME}); "
            "move it away, or give another --output_dir"
        )
    if not source.same_inputs(paths, options):
        made_from = ", ".join(file.name for file in source.files)
        raise ConversionError(
            f"{target} exists and was converted from another source or with other options ({made_from}; "
            f"{dict(source.options)}); move or remove it, or give another --output_dir"
        )
    return not source.missing(target)
