"""What a template is: it turns an example into segments, for training and for serving alike.

Segments are what is given to the model and what the model writes, in turn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from alpaca.prompts.example import Example

Spans = tuple[tuple[int, int], ...]
MAX_TEXT_CHARS = 1_000_000  # of one request, all turns together; the context limit is checked in tokens later


class Segment(NamedTuple):
    """A stretch of a conversation's text.

    `trained`: the model writes it, up to the template's turn end. `literal`: spans [start, end) of `text` that came
    from outside; in them, the spelling of a control token is ordinary text and must not become that token.
    """

    text: str
    trained: bool
    literal: Spans = ()


class Template(Protocol):
    """How an example becomes text. Training and serving both go through `segments`, so they can't differ."""

    @property
    def name(self) -> str: ...

    @property
    def turn_end(self) -> int | None:
        """The control token that ends an answer: the last that is trained. None where that is the tokenizer's EOS."""

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Texts at which an answer is over even where the model does not write its turn end."""

    def segments(self, example: Example) -> list[Segment]:
        """Prompt and response segments in turn; ends with a prompt where the last turn awaits its answer."""

    def conversations(self, example: Example) -> list[list[Segment]]:
        """What to train an answered example in: one conversation, or one for each answer, to be trained in it alone."""

    def card(self) -> dict[str, Any]:
        """The template in full, as JSON; `template_from_card` reads it."""


def wording(template: Template) -> dict[str, Any]:
    """What a template makes of prompts, whatever it is called."""
    return {key: value for key, value in template.card().items() if key not in ("name", "description")}


def fill(text: str, values: Mapping[str, str], front: str = "") -> Segment:
    """Put `values` at their placeholders in one pass, behind `front`, noting where what came from outside stands."""
    placeholder = re.compile(r"\{(" + "|".join(map(re.escape, values)) + r")\}")
    pieces = [front]
    literal = [(0, len(front))] if front else []
    length, copied = len(front), 0
    for found in placeholder.finditer(text):
        fixed, value = text[copied : found.start()], values[found[1]]
        literal.append((length + len(fixed), length + len(fixed) + len(value)))
        pieces += (fixed, value)
        length += len(fixed) + len(value)
        copied = found.end()
    pieces.append(text[copied:])
    return Segment("".join(pieces), False, tuple(literal))
