"""Every row of a source as it stands, before anything is dropped: what a check looks at and what a fix mends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from alpaca.data.reader import open_rows
from alpaca.data.report import Fault
from alpaca.data.rows import CONVERSATION_FIELDS, says_no_input, to_example
from alpaca.prompts.example import Example

if TYPE_CHECKING:
    from alpaca.prompts.encode import Refusal

KNOWN_FIELDS = {"instruction", "input", "output", *CONVERSATION_FIELDS}


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

    def refuse(self, refused: Iterable[Refusal]) -> None:
        """Take out rows that the base's template refuses, as faults like any other."""
        faults = [Fault(self.source, found.row, "", found.problem) for found in refused]
        rows = {fault.row for fault in faults}
        self.faults = sorted([*self.faults, *faults], key=lambda fault: fault.row)
        self.examples = [example for example in self.examples if example.row not in rows]

    def trainable(self) -> list[Example]:
        """The examples as training takes them: none with a blank output, `<noinput>` as no input."""
        return [_as_trained(example) for example in self.examples if not has_blank_output(example)]


def scan_rows(source: str) -> Scan:
    """Read every row of a file or hub data set. Raises DataNotFound, UnsupportedFile or UnreadableFile."""
    scan = Scan(source)
    for number, row in open_rows(source):
        scan.rows_read += 1
        example = to_example(row, number)
        if not isinstance(example, Example):
            scan.faults += [Fault(source, number, name, problem) for name, problem in example]
            continue
        scan.examples.append(example)
        if isinstance(row, Mapping):
            _note_shape(scan, row, example)
    return scan


def _note_shape(scan: Scan, row: Mapping[str, Any], example: Example) -> None:
    shape = next((name for name in CONVERSATION_FIELDS if row.get(name) is not None), "instruction")
    scan.shapes[shape] += 1
    wanted = "instruction" if len(example.turns) == 1 and not example.system.strip() else "messages"
    if shape != wanted:
        scan.reshaped.append(example.row)
    # A table has every field in every row; those that are empty there are none of this row's.
    if extra := [str(name) for name, value in row.items() if name not in KNOWN_FIELDS and value not in (None, "")]:
        scan.extra_fields.update(extra)
        scan.with_extra_fields.append(example.row)


def has_blank_output(example: Example) -> bool:
    """Whether a turn has no answer to learn; such a row is left out of training."""
    return not all((turn.output or "").strip() for turn in example.turns)


def _as_trained(example: Example) -> Example:
    first = example.turns[0]
    if not says_no_input(first.input):
        return example
    return replace(example, turns=(replace(first, input=""), *example.turns[1:]))
