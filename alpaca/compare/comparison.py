"""Answers side by side: as a table on a terminal, as JSON, and as a page that needs nothing else."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from alpaca import pages
from alpaca.words import visible

TITLE = "Answers side by side"
STYLE = """
body { max-width: 80rem; }
h2 { font-size: 1.05rem; margin: 2.5rem 0 .5rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); gap: 1rem; }
.answers section { border: 1px solid var(--line); border-radius: .4rem; padding: .25rem 1rem 1rem;
                   background: var(--soft); }
.answers h3 { font-size: .9rem; color: var(--dim); margin: .5rem 0; overflow-wrap: anywhere; }
.answers p { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; margin: 0; }
"""
BODY = """
<h1>{{ title }}</h1>
{% for question, answers in rows %}
<h2 dir="auto">{{ question }}</h2>
<div class="answers">
{% for answer in answers %}
<section><h3>{{ names[loop.index0] }}</h3><p dir="auto">{{ answer }}</p></section>
{% endfor %}
</div>
{% endfor %}
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
        """One table per prompt on a terminal, plain text elsewhere."""
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
        return pages.page(TITLE, STYLE, BODY, names=self.names, rows=self.rows())


def _table(title: str, names: Sequence[str], answers: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(visible(title), style="bold"), title_justify="left", show_lines=True, expand=True)
    for name in names:
        table.add_column(Text(visible(name)), ratio=1, overflow="fold")
    table.add_row(*(Text(visible(text)) for text in answers))
    console = Console()
    console.print()
    console.print(table)
