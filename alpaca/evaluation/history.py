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
Curve = list[tuple[float, float]]  # step and value


@dataclass(frozen=True)
class History:
    """Curves by field; a field that the run did not write has none. `before`, `after`: validation losses, if any."""

    curves: dict[str, Curve] = field(default_factory=dict)
    before: float | None = None
    after: float | None = None

    def curve(self, name: str) -> Curve:
        return self.curves.get(name, [])

    @property
    def validation(self) -> Curve:
        """The validation loss over steps, beginning with the base's own."""
        start = [] if self.before is None else [(0.0, self.before)]
        return [*start, *self.curve("eval_loss")]


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
    return History(curves, _finite(losses.get("validation_before")), _finite(losses.get("validation_after")))


def _finite(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None
