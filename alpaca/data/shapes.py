"""The shapes that rows come in: which fields make one, and which may stand beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Shape:
    """A shape of rows."""

    fields: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the check calls it: its first field."""
        return self.fields[0]

    def __str__(self) -> str:
        asked, *answered = self.fields
        given = ["input"] if self is INSTRUCTION else []
        return "{" + ", ".join([asked, *given, *answered]) + "}"

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether the row has every field. An empty answer counts, no conversation at all does not."""
        return all(name in row for name in self.fields) and row[self.fields[0]] is not None


BESIDE = ("input", "system", "history", "tools")
INSTRUCTION = Shape(("instruction", "output"), BESIDE)
PAIRS = (INSTRUCTION, Shape(("prompt", "completion"), BESIDE), Shape(("question", "answer"), BESIDE))
CONVERSATIONS = (Shape(("messages",), ("system", "tools")), Shape(("conversations",), ("system", "tools")))
TEXT = Shape(("text",))
ORDER = (*CONVERSATIONS, *PAIRS, TEXT)
SHAPES = {shape.name: shape for shape in ORDER}
FIELDS = {name for shape in SHAPES.values() for name in (*shape.fields, *shape.optional)} | {"chosen", "rejected"}
EXPECTED = "{instruction, input?, output}, {messages}, {conversations} or {text}"


def shape_of(row: object) -> Shape:
    """The first shape that fits; where none does, the one of instructions, whose fields are then missed."""
    assert isinstance(row, Mapping)
    return next((shape for shape in ORDER if shape.fits(row)), INSTRUCTION)


def unread_fields(row: object) -> list[str]:
    """Fields that say something and that training does not read."""
    if not isinstance(row, Mapping):
        return []
    shape = shape_of(row)
    read = {*shape.fields, *shape.optional}
    # A table has every field in every row; those that are empty there are none of this row's.
    return [str(name) for name, value in row.items() if name not in read and value not in (None, "")]


# --- no row -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Broken:
    """Stands where a row should be that could not even be parsed."""

    problem: str


class RepeatedField(dict[str, Any]):
    """A JSON object that names a field twice, so that one of the two values is lost."""
