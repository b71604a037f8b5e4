"""What a server of Cog's can be asked: its inputs, by its schema, and the models it has, by its own description."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from alpaca.errors import AlpacaError
from alpaca.gateway.asked import NUMBERS, Asked
from alpaca.gateway.refusals import Refused
from alpaca.serving.composition import BASE_ALONE, Part, parse_composition
from alpaca.words import shown

DESCRIBES = "answer_with"
"""An input of our own server: with `server` it answers with a description of itself, with `prompt` with the prompt."""
ALIASES = {
    "max_tokens": ("max_tokens", "max_new_tokens", "max_length"),
    "min_tokens": ("min_tokens", "min_new_tokens"),
    "stop_sequences": ("stop_sequences", "stop"),
}
"""What other models call the same input."""
MOST_NAME = 300  # characters of a model's name that are looked at
STRENGTHS = (0.0, 4.0)


@dataclass(frozen=True)
class Model:
    """A name that clients may ask for."""

    name: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """What has Cog's server answer with it."""
    root: str = ""
    """The name without a strength."""
    parent: str | None = None
    """The base of an adapter."""
    created: int = 0
    fingerprint: str = ""
    """Of the base's weights and the adapter's files."""
    context: int | None = None
    template: str = ""
    settings: tuple[str, ...] = ()
    """The fields of a request that it can honour."""


@dataclass(frozen=True)
class Served:
    """One server, as it was last seen."""

    inputs: Mapping[str, Any]
    """Input → its schema."""
    streams: bool
    models: Mapping[str, Model]
    answers: int | None = None
    """How many it makes at a time; None where it does not say."""

    @classmethod
    def by_schema(cls, openapi: Mapping[str, Any], name: str) -> Served:
        """Any Cog model with a `prompt`. Raises ValueError for a schema without one."""
        inputs = openapi["components"]["schemas"]["Input"]["properties"]
        if "prompt" not in inputs:
            raise ValueError("its model has no input 'prompt'")
        streams = bool(openapi["paths"]["/predictions"]["post"].get("x-cog-streaming"))
        return cls(inputs, streams, {name: Model(name, root=name, settings=_settings(inputs))})

    @property
    def describes(self) -> bool:
        return DESCRIBES in self.inputs

    def described(self, description: Mapping[str, Any]) -> Served:
        """The same with what our own server says of itself."""
        base, known = description["base"], description["fingerprint"]
        context = description["context"]
        models = {
            base: Model(base, {"adapter": BASE_ALONE}, base, None, 0, f"fp_{known}", context, description["template"])
        }
        listed = {entry["name"]: entry for entry in description["adapters"]}
        default = description["default"]
        if default and default["digest"] not in {entry["digest"] for entry in listed.values()}:
            models.setdefault(default["name"], _adapter(default, description, {}))
        for name, entry in listed.items():
            models.setdefault(name, _adapter(entry, description, {"adapter": json.dumps([{"name": name}])}))
        settings = _settings(self.inputs)
        models = {name: replace(model, settings=settings) for name, model in models.items()}
        return Served(self.inputs, self.streams, models, description["answers"])

    def find(self, name: str) -> Model | None:
        """A model by its name, `name@0.75`, or `a:0.7+b:0.5`; None where this server has none of that name.

        Raises Refused for a strength that is none.
        """
        if name in self.models:
            return self.models[name]
        root, at, strength = name[:MOST_NAME].rpartition("@")
        if at and (model := self.models.get(root)) is not None:
            return self._at(model, name, strength)
        return self._composed(name) if len(name) <= MOST_NAME and ("+" in name or ":" in name) else None

    def _at(self, model: Model, name: str, strength: str) -> Model:
        low, high = STRENGTHS
        try:
            scale = float(strength)
        except ValueError:
            scale = -1.0
        if not low <= scale <= high:
            raise Refused(400, f"model: the strength {shown(strength, 40)!r} must be from {low:g} to {high:g}",
                          param="model")  # fmt: skip
        if model.parent is None:
            raise Refused(400, f"model: {model.name} is no adapter, so it has no strength", param="model")
        return replace(model, name=name, inputs={**model.inputs, "adapter_scale": scale})

    def _composed(self, name: str) -> Model | None:
        """Several adapters in one answer; each must be one that is listed, so that no client names a URL."""
        try:
            parts = parse_composition(name).parts
        except AlpacaError as error:
            known = any(part.partition(":")[0].strip() in self.models for part in name.split("+"))
            if not known:
                return None
            raise Refused(400, f"{error.code} {type(error).__name__}: {error.message}", param="model") from None
        found = [self.models.get(str(part.source)) for part in parts]
        if not parts or not all(model is not None and "adapter" in model.inputs and model.parent for model in found):
            return None
        used = [model for model in found if model is not None]
        base = self.models[used[0].parent or ""]
        marks = [model.fingerprint.rpartition("_")[2] for model in used]
        return replace(
            base,
            name=name,
            root=name,
            inputs={"adapter": json.dumps([_entry(part) for part in parts])},
            parent=base.name,
            created=max(model.created for model in used),
            fingerprint="_".join([base.fingerprint, *marks]),
        )

    def cog_inputs(self, asked: Asked, model: Model) -> dict[str, Any]:
        """A request in this server's own words. Raises Refused for what it has no input for, or out of its bounds."""
        inputs = dict(model.inputs)
        given = dict(asked.inputs)
        if "messages" in given and "messages" not in self.inputs:
            given |= self._as_prompt(given.pop("messages"))
        if not self.describes and given.get("prompt_template") == "{prompt}":
            del given["prompt_template"]  # a model without templates takes a prompt as it stands
        if given.get("n") == 1:
            del given["n"]
        for name, value in given.items():
            target = next((alias for alias in ALIASES.get(name, (name,)) if alias in self.inputs), None)
            if target is None:
                raise Refused(400, f"{asked.field_of(name)} can't be honoured by {model.name}: it has no such input",
                              param=asked.field_of(name), code="unsupported_parameter")  # fmt: skip
            self._check(asked.field_of(name), value, self.inputs[target])
            inputs[target] = value
        return inputs

    def _as_prompt(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """A conversation for a model that takes only a prompt: the system's text in its own input where there is one,
        several turns with the speakers' names."""
        given: dict[str, Any] = {}
        if messages[0]["role"] == "system" and "system_prompt" in self.inputs:
            given["system_prompt"] = messages[0].get("content", "")
            messages = messages[1:]
        if [message["role"] for message in messages] == ["user"]:
            return given | {"prompt": messages[0].get("content", "")}
        turns = [f"{message['role'].capitalize()}: {message.get('content', '')}" for message in messages]
        return given | {"prompt": "\n\n".join([*turns, "Assistant:"])}

    def _check(self, name: str, value: Any, schema: Mapping[str, Any]) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return
        low, high = schema.get("minimum"), schema.get("maximum")
        if (low is not None and value < low) or (high is not None and value > high):
            raise Refused(400, f"{name} is {value}: it must be from {low} to {high}", param=name)


def _adapter(entry: Mapping[str, Any], description: Mapping[str, Any], inputs: Mapping[str, Any]) -> Model:
    mark = entry["digest"][:12] or "unread"
    return Model(
        entry["name"],
        inputs,
        entry["name"],
        description["base"],
        entry["created"],
        f"fp_{description['fingerprint']}_{mark}",
        description["context"],
        entry["template"] or description["template"],
    )


def _settings(inputs: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields for which there is an input, by whatever name."""
    return tuple(
        name for name, (target, _) in NUMBERS.items() if any(a in inputs for a in ALIASES.get(target, (target,)))
    )


def _entry(part: Part) -> dict[str, Any]:
    return {"name": str(part.source), "scale": part.scale}
