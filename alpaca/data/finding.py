"""What a look at the rows found: one kind of thing, the rows that have it, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

SHOWN_ROWS, SHOWN_TEXT, LISTED = 8, 70, 3


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


def row_list(rows: Sequence[int]) -> str:
    """The first row numbers and how many there are beyond."""
    listed = ", ".join(map(str, rows[:SHOWN_ROWS]))
    return listed + (f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else "")


def counted(rows: Sequence[int]) -> str:
    """How many rows, and which."""
    return f"{plural(len(rows), 'row')} ({row_list(rows)})"


def shown(text: str) -> str:
    """A text on one short line that can't steer a terminal or turn the direction of writing around."""
    line = " ".join(text[: 4 * SHOWN_TEXT].split())
    line = "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in line)
    return line if len(line) <= SHOWN_TEXT else line[: SHOWN_TEXT - 1] + "…"


def percent(part: int, whole: int) -> str:
    """A share for people; never 100 % or 0 % unless it is all or nothing."""
    share = 100 * part / whole if whole else 0.0
    if 0 < part < whole:
        share = min(max(share, 0.1), 99.9)
    return f"{share:.1f} %"


def plural(count: int, one: str, several: str = "") -> str:
    """1 row, 2 rows."""
    return f"{count} {one if count == 1 else several or one + 's'}"


def joined(parts: Iterable[str]) -> str:
    """a, b and c."""
    *first, last = list(parts) or [""]
    return f"{', '.join(first)} and {last}" if first else last
