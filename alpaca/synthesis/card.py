"""The card beside the rows: by which model they are, what it was told, and what was left out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alpaca import __version__
from alpaca.files import written_aside
from alpaca.synthesis.budget import Budget
from alpaca.synthesis.desk import Desk

LICENCE = (
    "These rows were written by a model. Read its licence and the terms of whoever provides it before you train on "
    "them or pass them on: some forbid training other models on what theirs writes, or ask that the model be named. "
    "The licence of the seed tasks, or of the rows that were translated, holds for what was made of them."
)


def card_path(output: Path) -> Path:
    """mine.card.json for mine.jsonl."""
    return output.with_name(f"{output.stem}.card.json")


def write_card(
    desk: Desk,
    budget: Budget,
    work: Mapping[str, Any],
    prompts: Mapping[str, str],
    more: Mapping[str, Any],
) -> Path:
    """Write the card of the rows as they are now. `prompts`: in full, with their placeholders and as once asked."""
    journal = desk.journal
    card = {
        "rows": sum(1 for _ in journal.rows),
        "made_by": f"python -m alpaca.synthesis {work['command']}",
        "alpaca": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": desk.model.described(),
        "licence": LICENCE,
        "settings": dict(work),
        "counts": dict(sorted(journal.counts.items())),
        "answers": len(journal.answers),
        "tokens": {"in": budget.tokens_in, "out": budget.tokens_out},
        "cost": round(budget.cost, 6) if budget.limits.price_in or budget.limits.price_out else None,
        **more,
        "prompts": dict(prompts),
    }
    path = card_path(journal.output)
    with written_aside(path) as aside:
        aside.write_text(json.dumps(card, ensure_ascii=False, indent=1) + "\n", encoding="utf-8", errors="replace")
    return path
