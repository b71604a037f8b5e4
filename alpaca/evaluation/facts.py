"""What the run was: its data, its base and settings, and what it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alpaca.adapter.card import Card
from alpaca.base.headers import count_layer_weights, count_weights
from alpaca.data.duplicates import find_duplicates
from alpaca.data.languages import languages_of
from alpaca.evaluation.tuned import Tuned
from alpaca.prompts.example import Example
from alpaca.prompts.percentiles import percentiles

MOST_ROWS = 20_000  # that are compared with each other; more take longer than the report
PERCENTS = (5, 50, 95, 100)


@dataclass(frozen=True)
class DataFacts:
    """The rows trained on and held out. `counts` are the card's; the rest is None or empty without the rows.

    `replay_ratio`: share of general rows mixed in, 0 where none were, None where no card says it.
    `lengths`: tokens of each training row with its template, before any is cut.
    """

    source: str
    counts: dict[str, int]
    replay_ratio: float | None = None
    looked_at: int = 0
    exact_copies: int | None = None
    near_copies: int | None = None
    languages: dict[str, int] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)

    @property
    def percentiles(self) -> dict[int, int]:
        """Percent → length that this share of the rows does not exceed."""
        return percentiles(self.lengths, PERCENTS)


@dataclass(frozen=True)
class RunFacts:
    """Base, settings, versions and cost. What the card does not say is None or empty.

    `flop`: 4 · N · tokens for N weights in the layers' matrices: 2N forward, and 2N for the gradient with respect to
    activations, because the base's own weights get none (Kaplan et al., 2020, sec. 2.1, without the weights' share); 6
    with that share, where all weights were trained.
    The head counts for labelled tokens only and is left out.
    """

    base: str
    fingerprint: str
    template: str
    precision: str
    weights: int
    adapter_weights: int
    created: str
    settings: dict[str, Any]
    versions: dict[str, str]
    steps: int | None
    seconds: float | None
    tokens: int | None
    peak_memory: int | None
    flop: float | None
    noun: str = "adapter"  # or model, where all weights were trained


def data_facts(card: Card | None, source: str, rows: Sequence[Example], lengths: Sequence[int]) -> DataFacts:
    """Look at the training rows; `lengths` are those of `rows` in tokens."""
    data = card.data if card else {}
    counts = {name: value for name, value in data.items() if isinstance(value, int)}
    replay = data.get("replay") or {}
    if isinstance(replay, dict) and isinstance(replay.get("rows_per_epoch"), int):
        counts["replay"] = replay["rows_per_epoch"]
    ratio = _number(replay.get("ratio")) if isinstance(replay, dict) else None
    ratio = ratio or (None if card is None else 0.0)
    if not rows:
        return DataFacts(source, counts, ratio)
    languages = {name: len(numbers) for name, numbers in languages_of(rows[:MOST_ROWS]).items()}
    found = find_duplicates(rows[:MOST_ROWS])
    exact, near = (sum(len(group) - 1 for group in groups) for groups in (found.exact, found.near))
    return DataFacts(source, counts, ratio, min(len(rows), MOST_ROWS), exact, near, languages, list(lengths))


def run_facts(tuned: Tuned, base: Path, template: str, precision: str) -> RunFacts:
    """Read the card and the headers of the base's weights."""
    card = tuned.card
    run, data = (card.run, card.data) if card else ({}, {})
    tokens, seconds = _number(data.get("tokens_trained_on")), _number(run.get("seconds"))
    flop = tuned.flop * count_layer_weights(base) * tokens if tokens else None
    return RunFacts(
        base=card.base_model if card else base.name,
        fingerprint=card.base_fingerprint if card else "",
        template=template,
        precision=precision,
        weights=count_weights(base),
        adapter_weights=tuned.count(),
        created=card.created if card else "",
        settings={**(card.settings if card else {}), **tuned.settings()},
        versions=card.versions if card else {},
        steps=_whole(run.get("steps")),
        seconds=seconds,
        tokens=_whole(tokens),
        peak_memory=_whole(run.get("peak_memory")),
        flop=flop,
        noun=tuned.noun,
    )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None


def _whole(value: Any) -> int | None:
    return None if (number := _number(value)) is None else int(number)
