"""What was read, what was left out, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from alpaca.prompts.example import Example


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

    `noinput`: rows whose input said `<noinput>`, as Stanford's data does, and was taken as none.
    """

    source: str
    rows_read: int = 0
    kept: int = 0
    bad: list[Fault] = field(default_factory=list)
    duplicates: int = 0
    empty_outputs: int = 0
    noinput: int = 0

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
        """Up to `max_faults` faults, one a line, and how many there are beyond."""
        lines = [f"  {fault}" for fault in self.bad[:max_faults]]
        if len(self.bad) > max_faults:
            lines.append(f"  ... and {len(self.bad) - max_faults} more")
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
        if self.bad:
            lines += [f"{self.bad_rows} bad rows skipped:", *self.fault_lines(max_faults)]
        return lines


@dataclass(frozen=True, slots=True)
class Dataset:
    """The examples in the order of the source, the report, and a hash of their content (order included)."""

    examples: list[Example]
    report: ReadReport
    sha256: str
