"""Answers side by side: as a table on a terminal, as JSON, and as a page that needs nothing else."""

from __future__ import annotations

import html
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; color: #222; }
h2 { font-size: 1.05rem; margin: 2.5rem 0 .5rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1rem; }
.answers section { border: 1px solid #ccc; border-radius: 6px; padding: .25rem 1rem 1rem; background: #fafafa; }
.answers h3 { font-size: .9rem; color: #555; margin: .5rem 0; overflow-wrap: anywhere; }
.answers p { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }
"""


@dataclass(frozen=True)
class Comparison:
    """`answers[prompt][name]`: what each of `names` answers to each prompt."""

    names: Sequence[str]
    prompts: Sequence[tuple[str, str]]
    """(prompt, input)."""
    answers: Sequence[Sequence[str]]

    def rows(self) -> list[tuple[str, Sequence[str]]]:
        """(prompt with its input below, answers)."""
        titles = [f"{prompt}\n{more}" if more else prompt for prompt, more in self.prompts]
        return list(zip(titles, self.answers, strict=True))

    def show(self) -> None:
        """One table a prompt on a terminal, plain text elsewhere."""
        for title, answers in self.rows():
            if sys.stdout.isatty():
                _table(title, self.names, answers)
                continue
            print(f"\n=== {title}")
            for name, text in zip(self.names, answers, strict=True):
                print(f"\n--- {name}\n{text}")

    def as_json(self) -> str:
        """A list of {prompt, input, answers: [{name, text}]}."""
        found = [
            {
                "prompt": prompt,
                "input": more,
                "answers": [{"name": n, "text": t} for n, t in zip(self.names, row, strict=True)],
            }
            for (prompt, more), row in zip(self.prompts, self.answers, strict=True)
        ]
        return json.dumps(found, ensure_ascii=False, indent=2) + "\n"

    def as_html(self) -> str:
        """A page of its own, without scripts; the columns stand below each other where the window is narrow."""
        parts = []
        for title, answers in self.rows():
            cells = "".join(
                f'<section><h3>{html.escape(name)}</h3><p dir="auto">{html.escape(text)}</p></section>'
                for name, text in zip(self.names, answers, strict=True)
            )
            parts.append(f'<h2 dir="auto">{html.escape(title)}</h2>\n<div class="answers">{cells}</div>')
        body = "\n".join(parts)
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>Answers side by side</title><style>{STYLE}</style></head>\n"
            f"<body><h1>Answers side by side</h1>\n{body}\n</body></html>\n"
        )


def _table(title: str, names: Sequence[str], answers: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title, style="bold"), title_justify="left", show_lines=True, expand=True)
    for name in names:
        table.add_column(Text(name), ratio=1, overflow="fold")
    table.add_row(*(Text(text) for text in answers))
    console = Console()
    console.print()
    console.print(table)
