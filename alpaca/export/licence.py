"""The licence that a base's own model card names."""

from __future__ import annotations

import re
from pathlib import Path


def licence_of(base: Path) -> str | None:
    """The field `license` at the head of the base's README.md, such as apache-2.0; None where there is none."""
    path = base / "README.md"
    if not path.is_file():
        return None
    head = re.match(r"---\n(.*?)\n---", path.read_text(encoding="utf-8", errors="replace")[:20_000], re.DOTALL)
    found = re.search(r"^license:\s*[\"']?([\w.-]+)", head[1], re.MULTILINE) if head else None
    return found[1] if found else None
