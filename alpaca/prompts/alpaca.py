"""Templates in alpaca-lora's JSON format."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from alpaca.errors import BadMessages, BadTemplate
from alpaca.prompts.example import Example
from alpaca.prompts.template import Segment, fill
from alpaca.words import names

MAX_REPEATS = 4  # of a placeholder: a stranger's template could make gigabytes of one prompt


class AlpacaTemplate:
    """A template in alpaca-lora's JSON format: description, prompt_input, prompt_no_input, response_split.

    `{instruction}` and `{input}` are replaced in one pass, so braces in a user's text stay as they are. A system
    text goes in front, with a blank line after it. A further turn is a blank line and the prompt again from the
    line that heads the instruction; what stands before that line is said only once.
    """

    turn_end: int | None = None

    def __init__(self, name: str, fields: Mapping[str, Any]) -> None:
        """Raises BadTemplate with the reason if prompts can't be made from `fields`."""
        self.name = name
        self.description = _text(name, fields, "description", default="")
        self.prompt_input = _text(name, fields, "prompt_input")
        self.prompt_no_input = _text(name, fields, "prompt_no_input")
        self.response_split = _text(name, fields, "response_split")
        _check_prompt(name, "prompt_input", self.prompt_input, self.response_split, {"instruction", "input"})
        _check_prompt(name, "prompt_no_input", self.prompt_no_input, self.response_split, {"instruction"})
        self._blocks = {prompt: prompt[_block_start(prompt) :] for prompt in (self.prompt_input, self.prompt_no_input)}

    @property
    def stop_strings(self) -> tuple[str, ...]:
        block = self._blocks[self.prompt_no_input]
        header = block[: block.index("{instruction}")].strip() or self.response_split.strip()
        # A plain word such as "User:" may well stand inside an answer; there only a whole new line counts.
        return (f"\n{header}",) if header[0].isalnum() else (f"\n{header}", header)

    def segments(self, example: Example) -> list[Segment]:
        """Raises BadMessages for a conversation with tools, for which there is no rule."""
        if example.uses_tools:
            raise BadMessages(
                f"the template '{self.name}' can't write tools, their calls and their results; "
                "take the template chat and a base whose own template writes them"
            )
        segments: list[Segment] = []
        for number, turn in enumerate(example.turns):
            prompt = self.prompt_input if turn.input.strip() else self.prompt_no_input
            values = {"instruction": turn.instruction, "input": turn.input}
            if number:
                segments.append(fill("\n\n" + self._blocks[prompt], values))
            else:
                segments.append(fill(prompt, values, f"{example.system}\n\n" if example.system.strip() else ""))
            if turn.output is None:
                break
            segments.append(Segment(turn.output, True, ((0, len(turn.output)),)))
        return segments

    def conversations(self, example: Example) -> list[list[Segment]]:
        return [self.segments(example)]

    def card(self) -> dict[str, Any]:
        return {
            "kind": "alpaca",
            "name": self.name,
            "description": self.description,
            "prompt_input": self.prompt_input,
            "prompt_no_input": self.prompt_no_input,
            "response_split": self.response_split,
        }


def further_turn(template: AlpacaTemplate) -> str:
    """What a further question without an input is put into: a blank line, and the prompt from its heading on."""
    prompt = template.prompt_no_input
    return f"\n\n{prompt[_block_start(prompt) :]}"


def _block_start(prompt: str) -> int:
    """Where the line begins that heads the instruction: the last one before it that is not blank."""
    before = prompt[: prompt.index("{instruction}")].rstrip()
    return before.rfind("\n") + 1


def _text(name: str, fields: Mapping[str, Any], field: str, default: str | None = None) -> str:
    value = fields.get(field, default)
    if value is None:
        raise BadTemplate(f"template '{name}' has no '{field}' (found: {names(fields)})")
    if not isinstance(value, str):
        raise BadTemplate(f"template '{name}': '{field}' is a {type(value).__name__}, not text")
    if default is None and not value.strip():
        raise BadTemplate(f"template '{name}': '{field}' is blank")
    return value


def _check_prompt(name: str, field: str, prompt: str, marker: str, needed: set[str]) -> None:
    where = f"template '{name}': '{field}'"
    if doubled := re.search(r"\{\{\s*(instruction|input)\s*\}\}", prompt):
        raise BadTemplate(f"{where} holds {doubled[0]}; write {{{doubled[1]}}} with single braces")
    found = set(re.findall(r"\{([^\W\d]\w*)\}", prompt))
    if missing := needed - found:
        raise BadTemplate(f"{where} lacks the placeholder {{{min(missing)}}}")
    if unknown := found - needed:
        known = " and ".join(f"{{{placeholder}}}" for placeholder in sorted(needed, reverse=True))
        raise BadTemplate(f"{where} holds {{{min(unknown)}}}, which nothing is put into; it may hold {known}")
    if often := [placeholder for placeholder in needed if prompt.count(f"{{{placeholder}}}") > MAX_REPEATS]:
        raise BadTemplate(f"{where} holds {{{min(often)}}} more than {MAX_REPEATS} times")
    at = prompt.rfind(marker)
    if at < 0:
        raise BadTemplate(f"{where} does not hold the response_split {marker!r}")
    if rest := prompt[at + len(marker) :].strip():
        raise BadTemplate(f"{where} continues with {rest[:40]!r} after the response_split, where the answer must begin")
