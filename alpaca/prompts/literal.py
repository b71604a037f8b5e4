"""A prompt template given as text with a request: literal replacement, never a language of its own."""

from __future__ import annotations

from typing import Any

from alpaca.errors import BadMessages, BadTemplate, OutOfRange
from alpaca.prompts.example import Example
from alpaca.prompts.template import MAX_TEXT_CHARS, Segment, fill


class LiteralTemplate:
    """Puts the prompt at {prompt} and the system prompt at {system_prompt}, in one pass; other braces are text.

    Special tokens written in the template become those tokens; in what replaces a placeholder they stay text.
    Without {system_prompt}, a system prompt goes in front, followed by a blank line.
    """

    name = "literal"
    turn_end: int | None = None
    stop_strings: tuple[str, ...] = ()

    def __init__(self, text: str) -> None:
        if "{prompt}" not in text:
            raise BadTemplate("prompt_template is neither a template's name nor a text that holds {prompt}")
        self._text = text if "{system_prompt}" in text else None
        self._plain = text

    def segments(self, example: Example) -> list[Segment]:
        """One prompt segment. Raises BadMessages for a conversation of several turns, for which there is no rule, and
        OutOfRange where the template repeats a text until it is too long."""
        if len(example.turns) > 1:
            raise BadMessages(
                f"messages holds {len(example.turns)} turns, and a prompt_template given as text can hold one; "
                "name a template instead, such as chat or alpaca"
            )
        turn = example.turns[0]
        values = {"prompt": turn.question, "system_prompt": example.system}
        text = self._text
        if text is None:
            text = "{system_prompt}\n\n" + self._plain if example.system.strip() else self._plain
        size = len(text) + sum(text.count(f"{{{name}}}") * len(value) for name, value in values.items())
        if size > MAX_TEXT_CHARS:
            raise OutOfRange(f"prompt_template, filled, has {size:,} characters; at most {MAX_TEXT_CHARS:,}")
        return [fill(text, values)]

    def conversations(self, example: Example) -> list[list[Segment]]:
        return [self.segments(example)]

    def card(self) -> dict[str, Any]:
        return {"kind": "literal", "name": self.name, "text": self._plain}
