"""Every row of a source as it stands, before anything is dropped: what a check looks at and what a fix mends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from alpaca.data.reader import open_rows
from alpaca.data.report import Fault
from alpaca.data.rows import has_blank_answer, says_no_input, to_example, to_row, without_input
from alpaca.data.shapes import shape_of, unread_fields
from alpaca.prompts.example import Example

if TYPE_CHECKING:
    from alpaca.prompts.encode import Refusal


@dataclass(slots=True)
class Scan:
    """The rows of `source`. `examples` are as written, those with a blank output among them.

    `shapes` counts rows by shape, `extra_fields` those with a field that training does not read. `reshaped` are the
    numbers of rows that a fixed file holds in another shape than this one.
    """

    source: str
    rows_read: int = 0
    examples: list[Example] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    shapes: Counter[str] = field(default_factory=Counter)
    extra_fields: Counter[str] = field(default_factory=Counter)
    reshaped: list[int] = field(default_factory=list)
    with_extra_fields: list[int] = field(default_factory=list)

    @property
    def is_text(self) -> bool:
        """Whether the source is plain text, whose rows are passages."""
        return bool(self.examples and self.examples[0].place)

    def refuse(self, refused: Iterable[Refusal]) -> None:
        """Take out rows that the base's template refuses, as faults like any other."""
        faults = [Fault(self.source, found.row, "", found.problem) for found in refused]
        rows = {fault.row for fault in faults}
        self.faults = sorted([*self.faults, *faults], key=lambda fault: fault.row)
        self.examples = [example for example in self.examples if example.row not in rows]

    def trainable(self) -> list[Example]:
        """The examples as training takes them: none with a blank output, `<noinput>` as no input."""
        return [_as_trained(example) for example in self.examples if not has_blank_answer(example)]


def scan_rows(source: str, columns: Mapping[str, str] | None = None) -> Scan:
    """Read every row of a file or hub data set; `columns` as for `open_rows`. Raises what that raises."""
    scan = Scan(source)
    for number, row in open_rows(source, columns):
        scan.rows_read += 1
        example = to_example(row, number)
        if not isinstance(example, Example):
            scan.faults += [Fault(source, number, name, problem) for name, problem in example]
            continue
        scan.examples.append(example)
        _note_shape(scan, row, example)
    return scan


def _note_shape(scan: Scan, row: object, example: Example) -> None:
    shape = shape_of(row)
    scan.shapes[shape.name] += 1
    if shape.name not in to_row(example):
        scan.reshaped.append(example.row)
    if extra := unread_fields(row):
        scan.extra_fields.update(extra)
        scan.with_extra_fields.append(example.row)


def _as_trained(example: Example) -> Example:
    return without_input(example) if says_no_input(example.turns[-1].input) else example
