"""How long rows are, in the base's tokens or, without a base, in characters; what fits and what is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from alpaca.prompts.example import Example
from alpaca.prompts.percentiles import percentiles

if TYPE_CHECKING:
    import numpy as np

    from alpaca.data.yardstick import Yardstick
    from alpaca.prompts.encode import Refusal

CUTOFFS = (128, 256, 512, 1024, 2048, 4096, 8192)
BINS = 14


@dataclass(frozen=True, slots=True)
class Bin:
    """The number of rows with a length from `start` to below `end`; the last bin has no end."""

    start: int
    end: int | None
    rows: int


@dataclass(frozen=True, slots=True)
class Lengths:
    """`values`: the length of each example, int (n,), in `unit` (tokens or characters).

    With tokens: `truncated` and `too_long` are row numbers under `cutoff_len`; a row is too long if its prompt leaves
    no room for an answer. `split`: conversations that become several examples. `refused`: by the template, and not
    among `values`. `measured_with` names base and template; without a base it says why there is none.
    """

    values: np.ndarray
    unit: str
    measured_with: str
    cutoff_len: int | None
    truncated: list[int]
    too_long: list[int]
    split: list[int] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)

    @property
    def fitting(self) -> int:
        """How many examples can be trained on; without a base, all."""
        return len(self.values) - len(self.too_long)

    def percentiles(self) -> dict[int, int]:
        """Percent → length that this share of the examples does not exceed."""
        return percentiles(self.values)

    def coverage(self) -> dict[int, float]:
        """Share of the examples that fit whole in a cutoff, from 0 to 1; none without tokens."""
        if self.cutoff_len is None or not len(self.values):
            return {}
        longest = int(self.values.max())
        useful = [cutoff for number, cutoff in enumerate(CUTOFFS) if not number or CUTOFFS[number - 1] < longest]
        return {cutoff: float((self.values <= cutoff).mean()) for cutoff in sorted({*useful, self.cutoff_len})}

    def histogram(self) -> list[Bin]:
        """Bins of equal width from the shortest to the 99th percentile, and one for what is longer."""
        import numpy as np

        if not len(self.values):
            return []
        top = percentiles(self.values, [99])[99]
        width = 4
        while top >= width * BINS:
            width *= 2
        first = int(self.values.min()) // width * width
        edges = list(range(first, (top // width + 1) * width + 1, width))
        counts, _ = np.histogram(self.values, bins=[*edges, np.inf])
        bins = [Bin(start, start + width, int(count)) for start, count in zip(edges[:-1], counts, strict=False)]
        beyond = int(counts[len(edges) - 1])
        return [*bins, Bin(edges[-1], None, beyond)] if beyond else bins

    def as_json(self) -> dict[str, Any]:
        """The numbers, for a program to read."""
        return {
            "unit": self.unit,
            "measured_with": self.measured_with,
            "cutoff_len": self.cutoff_len,
            "percentiles": self.percentiles(),
            "coverage": {cutoff: round(share, 4) for cutoff, share in self.coverage().items()},
            "histogram": [{"from": part.start, "below": part.end, "rows": part.rows} for part in self.histogram()],
            "truncated": self.truncated,
            "split": self.split,
            "too_long": self.too_long,
        }


def in_characters(examples: Sequence[Example], why: str) -> Lengths:
    """Lengths where there is no base: characters of all texts of a row, without a template's own."""
    import numpy as np

    counts = [
        len(example.system)
        + len(example.tools)
        + sum(len(text) for turn in example.turns for text in (*turn.given, *turn.written))
        for example in examples
    ]
    return Lengths(np.array(counts, dtype=np.int64), "characters", why, None, [], [])


def in_tokens(examples: Sequence[Example], yardstick: Yardstick) -> Lengths:
    """Lengths as training will have them, the template's tokens and turn end included; none for what it refuses.

    Passages of a text are measured one by one; raw text that is longer than the cutoff loses nothing and is not named.
    """
    report = yardstick.encode([replace(example, place=None) for example in examples]).report
    cutoff, too_long = yardstick.cutoff_len, report.dropped_too_long
    dropped, refused = {*too_long, *report.cut}, {found.row for found in report.refused}
    measured = [example for example in examples if example.row not in refused]
    truncated = [
        example.row
        for example, length in zip(measured, report.lengths, strict=True)
        if length > cutoff and example.row not in dropped
    ]
    name = f"{yardstick.base}, template {yardstick.template.name}"
    return Lengths(report.lengths, "tokens", name, cutoff, truncated, too_long, report.split, report.refused)
