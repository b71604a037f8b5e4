"""What a look at the rows found: one kind of thing, the rows that have it, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alpaca.words import counted, shown

LISTED = 3  # rows whose text is shown


@dataclass(frozen=True, slots=True)
class Finding:
    """`seen`: the text that gave it away, by row number in the order of the file. `mended`: `--fix` takes care of it.

    `harmless`: worth a line, no warning. `section`: where it stands in the report.
    """

    kind: str
    title: str
    advice: str
    seen: dict[int, str]
    mended: bool = False
    harmless: bool = False
    section: str = "Odd rows"

    def lines(self) -> list[str]:
        """For people: how many and which, what the first of them look like, what to do."""
        examples = [f"    row {row}: {shown(text)}" for row, text in list(self.seen.items())[:LISTED] if text]
        return [f"{self.title}: {counted(list(self.seen))}", *examples, f"    → {self.advice}"]

    def as_json(self) -> dict[str, Any]:
        """All rows, for a program to read."""
        return {
            "kind": self.kind, "title": self.title, "advice": self.advice, "mended": self.mended,
            "harmless": self.harmless, "count": len(self.seen),
            "rows": [{"row": row, "text": text[:200]} for row, text in self.seen.items()],
        }  # fmt: skip
