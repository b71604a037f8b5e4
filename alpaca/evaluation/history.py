"""What a run wrote down while it trained: report/training.json of its folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alpaca.adapter.card import Card

FILE = "training.json"
FIELDS = ("loss", "eval_loss", "learning_rate", "tokens_per_second", "memory")  # memory: bytes in use
LAST = 1 / 3  # of the training: where the held-out loss fell over it by
FALLING = 0.02  # per token or more, to its end, more training would have helped
ENGLISH = "English"
UNFAMILIAR = 1.8  # times as much as English, byte by byte: from there on the base hardly knows a language
Curve = list[tuple[float, float]]  # step and value


@dataclass(frozen=True)
class Familiarity:
    """How much answers surprise the base, in loss per byte of their text: those of the `rows`, and `english` general
    ones, which no base knows less of. `language`: that of most rows, "" where it is not known."""

    rows: float
    english: float
    language: str = ""

    @property
    def strange(self) -> bool:
        """Whether the base hardly knows the language of the rows. English is what all are measured by."""
        return self.times >= UNFAMILIAR and self.language != ENGLISH

    @property
    def times(self) -> float:
        """How many times as much as English the rows surprise the base, byte by byte."""
        return self.rows / self.english


@dataclass(frozen=True)
class History:
    """Curves by field; a field that the run did not write has none.

    `before`, `after`: validation losses, if any. `familiar`: how well the base knew the rows before the training.
    """

    curves: dict[str, Curve] = field(default_factory=dict)
    before: float | None = None
    after: float | None = None
    familiar: Familiarity | None = None

    def curve(self, name: str) -> Curve:
        return self.curves.get(name, [])

    @property
    def validation(self) -> Curve:
        """The validation loss over steps, beginning with the base's own."""
        start = [] if self.before is None else [(0.0, self.before)]
        return [*start, *self.curve("eval_loss")]

    @property
    def still_falling(self) -> float | None:
        """By how much the held-out loss fell over the last third of the training, if it was still falling at its end;
        None where it was not, or too little is known."""
        curve = self.validation
        if len(curve) < 3 or min(value for _, value in curve) < curve[-1][1]:
            return None
        end = curve[-1][0]
        earlier = [value for step, value in curve if step <= (1 - LAST) * end][-1]
        fell = earlier - curve[-1][1]
        return fell if fell >= FALLING else None


def read_history(folder: Path, card: Card | None) -> History:
    """The history in an adapter's folder; an empty one where there is none or where it can't be read."""
    try:
        content = json.loads((folder / "report" / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = {}
    entries = content.get("history") if isinstance(content, Mapping) else None
    curves: dict[str, Curve] = {}
    for entry in entries if isinstance(entries, list) else []:
        step = _finite(entry.get("step")) if isinstance(entry, Mapping) else None
        if step is None:
            continue
        for name in FIELDS:
            if (value := _finite(entry.get(name))) is not None:
                curves.setdefault(name, []).append((step, value))
    losses = card.losses if card is not None else {}
    before, after = (_finite(losses.get(f"validation_{when}")) for when in ("before", "after"))
    return History(curves, before, after, _familiarity(losses.get("per_byte")))


def _familiarity(noted: Any) -> Familiarity | None:
    if not isinstance(noted, Mapping):
        return None
    rows, english = _finite(noted.get("rows")), _finite(noted.get("english"))
    if rows is None or english is None or english <= 0:
        return None
    return Familiarity(rows, english, str(noted.get("language", ""))[:40])


def _finite(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None
