"""Where requests may name adapters: what lies directly in a folder, never what is hidden or deeper down."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from alpaca.adapter.folder import WEIGHTS
from alpaca.adapter.lora_config import CONFIG
from alpaca.errors import AdapterNotFound

ARCHIVES = (".zip", ".tar", ".tgz", ".gz")


@dataclass(frozen=True)
class Root:
    """A folder, and which names in it may be an adapter's: `lora-*` keeps the rest of a project out."""

    folder: Path
    pattern: str = "*"

    @classmethod
    def of(cls, path: Path) -> Root:
        """A root as the operator writes it: a folder, or a folder and a pattern for the names in it."""
        return cls(path.parent, path.name) if "*" in path.name else cls(path)

    def place(self, source: str) -> Path | None:
        """Where `source`, a name or a whole path, lies in this root; None where it would lie anywhere else.

        What it leads to is not looked at: of what is no adapter's name, not even the existence is told.
        """
        path = Path(os.path.normpath(os.path.join(os.path.abspath(self.folder), source)))
        here = path.parent in (Path(os.path.abspath(self.folder)), Path(os.path.realpath(self.folder)))
        return path if here and not path.name.startswith(".") and fnmatchcase(path.name, self.pattern) else None

    def names(self) -> list[str]:
        """The adapters that are there, by what they look like from outside."""
        if not self.folder.is_dir():
            return []
        return [path.name for path in sorted(self.folder.iterdir()) if self.place(path.name) and _looks_like_one(path)]

    def __str__(self) -> str:
        return str(self.folder) if self.pattern == "*" else str(self.folder / self.pattern)


def _looks_like_one(path: Path) -> bool:
    if path.is_dir():
        return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()
    return path.is_file() and path.name.endswith(ARCHIVES)


def not_there(name: str, roots: Sequence[Root]) -> AdapterNotFound:
    """What to tell the operator, who may know which adapters there are."""
    there = list(dict.fromkeys(found for root in roots for found in root.names()))
    near = difflib.get_close_matches(name, there, n=1)
    listed = f"There are: {', '.join(there)}" if there else "There is none"
    where = f" (in {', '.join(map(str, roots))})" if roots else ""
    meant = f" Did you mean '{near[0]}'?" if near else ""
    return AdapterNotFound(f"no adapter '{name}'. {listed}{where}.{meant} A folder, an archive or an https URL will do")
