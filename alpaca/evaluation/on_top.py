"""What a report says first of an adapter that was trained on top of another: of what, and what is measured of both."""

from __future__ import annotations

from alpaca.adapter.ancestry import asked_together
from alpaca.adapter.card import Card
from alpaca.words import joined


def on_top_of(name: str, card: Card | None) -> list[str]:
    """Sentences; none for an adapter that was trained on the base alone, or has no card."""
    ancestor = card.on_top_of if card is not None else None
    if card is None or ancestor is None:
        return []
    said = [f"On top of {ancestor.name}: {name} was trained {ancestor.line()}."]
    together = [needed.name for needed in asked_together(ancestor)]
    if together:
        said.append(
            f"What is measured is {joined([name, *together])} in one answer, against the base, and a scale is of all "
            f"of them. {name} is asked together with {joined(together)}; alone it was never trained."
        )
    else:
        said.append(f"What is measured is {name} against the base, with all that it has from {ancestor.name}.")
    before, after = (card.losses.get(f"validation_{when}") for when in ("before", "after"))
    if isinstance(before, float) and isinstance(after, float):
        start = joined(together) if ancestor.how != "continued" else joined([ancestor.name, *together])
        said.append(f"On this run's held-out rows {start} alone had a loss of {before:.2f}; it is {after:.2f} now.")
    return said
