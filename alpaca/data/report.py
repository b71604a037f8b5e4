"""What was read, what was left out, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from alpaca.data.shapes import PAIRS, TEXT
from alpaca.prompts.example import Example
from alpaca.words import joined, numbered_rows, plural, shown

SHOWN_COLUMNS = 6
FEW_FAULTS = 5  # that are listed one by one


@dataclass(frozen=True, slots=True)
class Fault:
    """Why one row can't be used. `row` is 1-based; `field` is empty where the whole row is at fault."""

    source: str
    row: int
    field: str
    problem: str

    def __str__(self) -> str:
        return f"{self.source} row {self.row}" + (f", {self.field}" if self.field else "") + f": {self.problem}"


@dataclass(slots=True)
class ReadReport:
    """Counts of a reading. Duplicates are kept; rows with an empty output are dropped; bad rows are listed in full.

    `noinput`: rows whose input said `<noinput>`, as Stanford's data does, and was taken as none. `shapes`: rows by
    shape. `unread`: rows by field that says something and is not read.
    """

    source: str
    rows_read: int = 0
    kept: int = 0
    bad: list[Fault] = field(default_factory=list)
    duplicates: int = 0
    empty_outputs: int = 0
    noinput: int = 0
    shapes: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)

    def add_faults(self, faults: Iterable[Fault]) -> None:
        """Take out rows that were kept and turned out to be at fault."""
        found = list(faults)
        self.kept -= len({fault.row for fault in found})
        self.bad = sorted([*self.bad, *found], key=lambda fault: fault.row)

    @property
    def bad_rows(self) -> int:
        """Number of rows at fault; a row may have several faults."""
        return len({fault.row for fault in self.bad})

    def fault_lines(self, max_faults: int) -> list[str]:
        """A few faults one by one; of more, up to `max_faults` kinds with their rows, and how many kinds are left."""
        if len(self.bad) <= FEW_FAULTS:
            return [f"  {fault}" for fault in self.bad]
        kinds = by_kind(self.bad)
        lines = []
        for (name, problem), rows in list(kinds.items())[:max_faults]:
            lines.append(f"  {self.source} {numbered_rows(rows)}{f', {name}' if name else ''}: {problem}")
        if len(kinds) > max_faults:
            lines.append(f"  ... and {len(kinds) - max_faults} more")
        return lines

    def _field_lines(self) -> list[str]:
        """Which fields were taken for question and answer where that is a choice, and which were not read."""
        lines = [
            f"{plural(self.shapes[shape.name], 'row')} of {shape.fields[0]} and {shape.fields[1]}, "
            "read as instruction and output"
            for shape in PAIRS[1:]
            if self.shapes[shape.name]
        ]
        if count := self.shapes[TEXT.name]:
            lines.append(f"{plural(count, 'row')} of raw text: every token is trained, without a template")
        if self.unread:
            listed = joined(f"{shown(name)} ({count})" for name, count in self.unread.most_common(SHOWN_COLUMNS))
            more = len(self.unread) - SHOWN_COLUMNS
            lines.append(f"columns not read: {listed}" + (f", and {plural(more, 'other')}" if more > 0 else ""))
        return lines

    def lines(self, max_faults: int = 5) -> list[str]:
        """The report for people; what did not happen is not mentioned."""
        lines = [f"{self.source}: {self.rows_read} rows read, {self.kept} kept"]
        if self.empty_outputs:
            lines.append(f"{self.empty_outputs} dropped: empty output")
        if self.duplicates:
            lines.append(f"{self.duplicates} exact duplicates (kept)")
        if self.noinput:
            lines.append(f"{self.noinput} with <noinput> as input, taken as no input")
        lines += self._field_lines()
        if self.bad:
            lines += [f"{self.bad_rows} bad rows skipped:", *self.fault_lines(max_faults)]
        return lines


def by_kind(faults: Sequence[Fault]) -> dict[tuple[str, str], list[int]]:
    """(field, problem) → rows. A file with a wrong field has it in every row, and nobody reads that row by row."""
    kinds: dict[tuple[str, str], list[int]] = {}
    for fault in faults:
        kinds.setdefault((fault.field, fault.problem), []).append(fault.row)
    return kinds


@dataclass(frozen=True, slots=True)
class Dataset:
    """The examples in the order of the source, the report, and a hash of their content (order included)."""

    examples: list[Example]
    report: ReadReport
    sha256: str
