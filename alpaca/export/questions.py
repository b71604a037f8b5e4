"""The forty questions of a proof: rows held out of the training, general rows, odd characters, two turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice

from alpaca.adapter.card import Card
from alpaca.data.general import SHIPPED
from alpaca.errors import AlpacaError
from alpaca.evaluation.sets import find_domain, find_general
from alpaca.prompts.example import Example

COUNT = 40
SHORT, LONG = 16, 48  # tokens of an answer, at most: few for most, enough for some that an answer ends
_ODD = (
    "Say hello to Zoë, Łukasz and Ñandú — “quickly”, please…",
    "羊驼吃什么?请用一句话回答。",
    "ما هو اللاما؟",
    "Repeat exactly: 🦙👩‍🌾 ½ × 3² ≠ 10 €\t(tab)",
    "What does this print?\n\n```python\nfor i in range(3):\n    print(i**2, end=' ')\n```",
    "  Two  spaces, and\n\n\nthree line breaks.  ",
)
_FIRST = (("Hello!", "Hello! How can I help you?"), ("What is 2 + 2?", "4"))


@dataclass(frozen=True)
class Question:
    """`messages` as OpenAI's clients send them, ending with the user's. `reference`: the row's own answer, or ""."""

    kind: str
    messages: tuple[dict[str, str], ...]
    most: int
    reference: str = ""

    @property
    def example(self) -> Example:
        return Example.from_messages(self.messages)


def forty_questions(card: Card | None) -> tuple[list[Question], str]:
    """The questions, and where they come from, in words.

    Held-out rows are found as the report finds them: in the file that the card names, where it is still there.
    """
    held_out, source = _held_out(card)
    general = _plain(find_general(SHIPPED, []).measuring)
    odd = [Question("odd characters", _asked(text), SHORT) for text in _ODD]
    own = [_of_row("held out", row, SHORT) for row in islice(held_out, 12)]
    two = [_second(first, row) for first, row in zip(_FIRST * 3, chain(held_out[12:], general[:6]), strict=False)]
    ending = [_of_row("short answer", row, LONG) for row in sorted(general, key=_length)[:6]]
    left = COUNT - len(own) - len(odd) - len(two) - len(ending)
    shortest = {id(row) for row in sorted(general, key=_length)[:6]}
    more = [_of_row("general", row, SHORT) for row in general if id(row) not in shortest][:left]
    return [*own, *more, *ending, *odd, *two], source


def _held_out(card: Card | None) -> tuple[list[Example], str]:
    if card is None:
        return [], "general rows alone (there is no card that would name rows held out)"
    try:
        domain = find_domain(card, None)
    except AlpacaError as error:
        return [], f"general rows alone ({error.message})"
    rows = _plain(domain.held_out)
    return rows, f"{domain.source}'s held-out rows and general ones" if rows else "general rows alone (" + (
        " ".join(domain.notes) or "no row was held out"
    ).rstrip(".") + ")"


def _plain(rows: Sequence[Example]) -> list[Example]:
    """Those of one turn that any chat template can write."""
    return [row for row in rows if row.is_pair and not row.raw and len(row.turns[-1].question) < 1500]


def _of_row(kind: str, row: Example, most: int) -> Question:
    return Question(kind, _asked(row.turns[-1].question), most, row.turns[-1].output or "")


def _second(first: tuple[str, str], row: Example) -> Question:
    before = ({"role": "user", "content": first[0]}, {"role": "assistant", "content": first[1]})
    return Question("two turns", (*before, *_asked(row.turns[-1].question)), SHORT)


def _asked(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def _length(row: Example) -> int:
    return len(row.turns[-1].output or "")
