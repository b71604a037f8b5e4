"""Rows and their translations side by side, to look at before a whole file is translated."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from alpaca.prompts.example import Example
from alpaca.words import visible


@dataclass(frozen=True, slots=True)
class Sampled:
    """`translation` is None for a row that is not translated; `outcome` says what was done."""

    original: Example
    translation: Example | None
    outcome: str

    def pairs(self) -> list[tuple[str, str, str]]:
        """(field, original, translation) of every text that there is."""
        theirs = _texts(self.translation) if self.translation else {}
        return [(name, text, theirs.get(name, "")) for name, text in _texts(self.original).items()]


def show(rows: Sequence[Sampled], language: str) -> None:
    """A table per row on a terminal, plain text elsewhere."""
    for row in rows:
        title = f"row {row.original.row}: {row.outcome}"
        if sys.stdout.isatty():
            _table(title, language, row.pairs())
            continue
        print(f"\n=== {title}")
        for name, original, translation in row.pairs():
            print(f"\n--- {name}\n{original}\n--- {name}, {language}\n{translation}")


def _texts(example: Example) -> dict[str, str]:
    several = len(example.turns) > 1
    found = {"system": example.system}
    for number, turn in enumerate(example.turns, 1):
        place = f" {number}" if several else ""
        found |= {f"instruction{place}": turn.instruction, f"input{place}": turn.input}
        found[f"output{place}"] = turn.output or ""
    return {name: text for name, text in found.items() if text.strip()}


def _table(title: str, language: str, pairs: Sequence[tuple[str, str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(visible(title), style="bold"), title_justify="left", show_lines=True, expand=True)
    table.add_column("")
    for name in ("original", language):
        table.add_column(Text(visible(name)), ratio=1, overflow="fold")
    for name, original, translation in pairs:
        table.add_row(name, Text(visible(original)), Text(visible(translation)))
    console = Console()
    console.print()
    console.print(table)
