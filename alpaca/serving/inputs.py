"""From the inputs a client sends, older names among them, to one request."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from alpaca.errors import BadMessages, ConflictingInputs, OutOfRange
from alpaca.prompts.example import Example
from alpaca.serving.composition import parse_composition
from alpaca.serving.request import BOUNDS, GenerationRequest

MAX_MESSAGES = 1000
MAX_STOP_TEXT = 65_536  # as many sequences as may be, as long as they may be, written as JSON in escapes
DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(GenerationRequest)}
OLDER_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "replicate_weights": "adapter"}


def request_from_inputs(
    *,
    prompt: str = "",
    input: str = "",
    system_prompt: str = "",
    messages: Sequence[Mapping[str, Any]] | None = None,
    stop_sequences: str | None = None,
    prompt_template: str | None = None,
    max_new_tokens: int | None = None,
    min_new_tokens: int | None = None,
    adapter: str | None = None,
    replicate_weights: str | None = None,
    **settings: Any,
) -> GenerationRequest:
    """Make a request of predict.py's inputs; `settings` are GenerationRequest's fields by name.

    Raises the coded error of what is wrong: EmptyPrompt, BadMessages, OutOfRange, ConflictingInputs, BadComposition.
    """
    # A form that sends every field sends empty ones too: an empty name is no name.
    settings["adapter"] = adapter or None
    older = {
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": min_new_tokens,
        "replicate_weights": replicate_weights or None,
    }
    for old, value in older.items():
        if value is not None:
            settings[OLDER_NAMES[old]] = _one_of(OLDER_NAMES[old], settings, old, value)
    if settings.get("total_tokens") is not None and settings.get("max_tokens", 512) != DEFAULTS["max_tokens"]:
        raise ConflictingInputs("max_tokens and total_tokens both say how long the answer may be: give one")
    named: str | None = settings.pop("adapter")
    return GenerationRequest(
        adapter=None if named is None else parse_composition(named),
        example=example_from_inputs(prompt, input, system_prompt, messages),
        stop_sequences=parse_stop_sequences(stop_sequences or ""),
        prompt_template=prompt_template or "",
        **{name: _whole(name, value) for name, value in settings.items()},
    )


def example_from_inputs(
    prompt: str, input: str, system_prompt: str, messages: Sequence[Mapping[str, Any]] | None
) -> Example:
    """The prompt side as an example whose last turn awaits its answer."""
    if not messages:
        return Example.single(prompt, input, system=system_prompt)
    if prompt.strip() or input.strip():
        raise ConflictingInputs("messages and prompt both say what to answer: give one")
    if len(messages) > MAX_MESSAGES:
        raise OutOfRange(f"messages has {len(messages):,} entries; at most {MAX_MESSAGES:,}")
    example = Example.from_messages(messages)
    if example.turns[-1].output is not None:
        raise BadMessages("the last message is from the assistant; it must be from the user or a tool, to be answered")
    if not system_prompt.strip():
        return example
    if example.system:
        raise ConflictingInputs("system_prompt and a system message both speak for the system: give one")
    return replace(example, system=system_prompt)


def parse_stop_sequences(text: str) -> tuple[str, ...]:
    """Split the stop_sequences input: a JSON list of texts, else texts with commas between, taken as they stand."""
    if len(text) > MAX_STOP_TEXT:
        raise OutOfRange(f"stop_sequences has {len(text):,} characters; at most {MAX_STOP_TEXT:,}")
    if text.lstrip().startswith("["):
        try:
            listed = json.loads(text)
        except (ValueError, RecursionError):
            listed = None  # "[INST]" is a stop sequence, not JSON, and so are a thousand brackets
        if isinstance(listed, list):
            if not all(isinstance(item, str) and item for item in listed):
                raise OutOfRange("stop_sequences: a JSON list must hold texts, none of them empty")
            return tuple(listed)
    return tuple(part for part in text.split(",") if part)


def _whole(name: str, value: Any) -> Any:
    """A whole number as an int, where one is wanted: to JSON and its schema, 2.0 is 2."""
    wanted = name in BOUNDS and isinstance(BOUNDS[name][0], int)
    return int(value) if wanted and isinstance(value, float) and value.is_integer() else value


def _one_of(name: str, settings: Mapping[str, Any], old: str, value: Any) -> Any:
    given = settings.get(name, DEFAULTS[name])
    if given not in (DEFAULTS[name], value):
        raise ConflictingInputs(f"{name} is {given} and {old}, its older name, is {value}: give one")
    return value
