"""Mend what can be mended without a person's judgement, and write the rest as a new file of rows."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from alpaca.data.rows import has_blank_answer, to_row
from alpaca.data.scan import Scan
from alpaca.data.suspicions import CONTROL, no_input, placeholder, stripped
from alpaca.files import written_aside
from alpaca.prompts.example import Example
from alpaca.words import counted, joined, plural

MOST_DROPPED = 0.1  # share of the rows that may go without a word at the top
LINE_END = re.compile("\r\n?|\x85")
KINDS = {
    "faulty": "dropped: faulty, see above",
    "blank": "dropped: the question or the answer is blank",
    "placeholder_output": "dropped: output such as N/A",
    "exact_duplicate": "dropped: exact copy of an earlier row, as mended",
    "no_input": "emptied: inputs that said there is none",
    "control": "taken out: control characters, byte order marks",
    "edges": "stripped: blanks at the beginning or end",
    "shape": "reshaped: to {instruction, input, output} or {messages}",
    "extra_fields": "left out: fields that training does not read",
}

# The kinds that drop a row, as one and as several are called.
DROPPED = {
    "faulty": ("faulty", "faulty"),
    "blank": ("with a blank question or answer", "with a blank question or answer"),
    "placeholder_output": ("output such as N/A", "outputs such as N/A"),
    "exact_duplicate": ("exact copy of an earlier row", "exact copies of earlier rows"),
}


@dataclass(slots=True)
class Mended:
    """The examples that are left, and the row numbers by what was done to them; a row may be in several lists."""

    examples: list[Example] = field(default_factory=list)
    done: dict[str, list[int]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    def loss(self, scan: Scan) -> str:
        """What to say first where over a tenth of the rows is dropped; else nothing."""
        dropped = {kind: self.done[kind] for kind in DROPPED if self.done[kind]}
        count = sum(map(len, dropped.values()))
        if count <= MOST_DROPPED * scan.rows_read:
            return ""
        why = joined(plural(len(rows), *DROPPED[kind]) for kind, rows in dropped.items())
        return f"--fix drops {count} of {plural(scan.rows_read, 'row')}, more than a tenth: {why}."

    def lines(self) -> list[str]:
        """For people: what was done to how many rows, and to which."""
        return [f"{KINDS[kind]}: {counted(rows)}" for kind, rows in self.done.items() if rows] or [
            "nothing to mend: the rows are as they were"
        ]


def mend(scan: Scan) -> Mended:
    """Clean every row and drop those that can't be trained on or say what an earlier one says."""
    mended = Mended()
    mended.done["faulty"] = sorted({fault.row for fault in scan.faults})
    mended.done["shape"], mended.done["extra_fields"] = list(scan.reshaped), list(scan.with_extra_fields)
    keys: set[str] = set()
    for example in scan.examples:
        clean, changes = _clean(example)
        dropped = _why_dropped(clean, keys)
        for kind in [dropped] if dropped else changes:
            mended.done[kind].append(example.row)
        if dropped is None:
            mended.examples.append(clean)
    kept = {example.row for example in mended.examples}
    for kind in ("shape", "extra_fields"):
        mended.done[kind] = [row for row in mended.done[kind] if row in kept]
    return mended


def write_rows(examples: Sequence[Example], target: Path) -> None:
    """Write a .jsonl file: {instruction, input, output}, or {messages} for several turns, a system text or tools."""
    with written_aside(target) as aside, aside.open("w", encoding="utf-8", newline="\n") as handle:
        for example in examples:
            handle.write(json.dumps(to_row(example), ensure_ascii=False) + "\n")


def _why_dropped(example: Example, keys: set[str]) -> str | None:
    unasked = not example.raw and not all(turn.instruction or turn.results for turn in example.turns)
    if unasked or has_blank_answer(example):
        return "blank"
    if any(placeholder(turn) for turn in example.turns):
        return "placeholder_output"
    key = example.key()
    if key in keys:
        return "exact_duplicate"
    keys.add(key)
    return None


def _clean(example: Example) -> tuple[Example, list[str]]:
    """The example as it should be, and the kinds of what was changed."""
    changes: set[str] = set()

    def clean(text: str) -> str:
        printable = CONTROL.sub("", LINE_END.sub("\n", text))
        changes.update(["control"] * (printable != text))
        bare = stripped(printable)
        changes.update(["edges"] * (bare != printable))
        return bare

    turns = []
    for turn in example.turns:
        made = replace(
            turn, instruction=clean(turn.instruction), input=clean(turn.input), output=clean(turn.output or "")
        )
        if no_input(made):
            made = replace(made, input="")
            changes.add("no_input")
        turns.append(made)
    made_of = replace(example, turns=tuple(turns), system=clean(example.system))
    return made_of, [kind for kind in KINDS if kind in changes]
