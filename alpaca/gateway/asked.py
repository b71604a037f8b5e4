"""What a client asks in OpenAI's words, read into Cog's: every field is honoured, without effect by its nature, or
refused by its name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alpaca.gateway.refusals import Refused
from alpaca.words import shown, type_name

NUMBERS: dict[str, tuple[str, type]] = {
    "temperature": ("temperature", float),
    "top_p": ("top_p", float),
    "top_k": ("top_k", int),
    "min_p": ("min_p", float),
    "repetition_penalty": ("repetition_penalty", float),
    "presence_penalty": ("presence_penalty", float),
    "frequency_penalty": ("frequency_penalty", float),
    "seed": ("seed", int),
    "n": ("n", int),
    "max_tokens": ("max_tokens", int),
    "max_completion_tokens": ("max_tokens", int),
    "min_tokens": ("min_tokens", int),
}
"""Field → Cog's input, and its type."""
TEXTS = ("prompt_template", "input")
"""Fields of this project's own: a template by name or as a text with {prompt} in it, and an instruction's further
context."""
NO_EFFECT = ("user", "metadata", "safety_identifier", "prompt_cache_key")
"""They say who asks, and ask nothing of the answer."""
UNHEARD: dict[str, tuple[Any, ...]] = {
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
}
"""What can't be honoured, with the values that ask for nothing; those pass."""
MOST_STOPS = 64
MESSAGE_FIELDS = {"role", "content", "tool_calls", "tool_call_id", "name"}
WHOLE_PROMPT = "{prompt}"  # as a template: the text alone, nothing around it


@dataclass(frozen=True)
class Asked:
    """One request, of chat or of completion."""

    model: str
    inputs: Mapping[str, Any]
    """Cog's inputs, but for the adapter."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Input → the field that it came from."""
    chat: bool = True
    stream: bool = False
    include_usage: bool = False

    @property
    def n(self) -> int:
        """How many answers."""
        return int(self.inputs.get("n", 1))

    def field_of(self, name: str) -> str:
        """What the client called one of Cog's inputs."""
        return self.fields.get(name, name)


def read_json(body: bytes) -> dict[str, Any]:
    """A request's body. Raises Refused for what is no JSON object, or holds what no text or number is."""
    try:
        given = json.loads(body, parse_constant=_no_number)
        json.dumps(given, ensure_ascii=False).encode()  # half a character, as \\ud800, is none
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {shown(str(error)) or type(error).__name__}") from None
    if not isinstance(given, dict):
        raise Refused(400, f"the body is {type_name(given)}; a JSON object is needed")
    return given


def read_chat(given: Mapping[str, Any]) -> Asked:
    """A request to /v1/chat/completions. Raises Refused with the field at fault."""
    rest = {name: value for name, value in given.items() if value is not None}
    inputs, fields = _settings(rest, default_tokens=None)
    messages = _messages(rest.pop("messages", None))
    if "input" in inputs:
        inputs |= _instruction(messages)
    else:
        inputs["messages"] = messages
    return _asked(rest, inputs, fields, chat=True)


def read_completion(given: Mapping[str, Any]) -> Asked:
    """A request to /v1/completions: the prompt as it stands, without a template. Raises Refused."""
    rest = {name: value for name, value in given.items() if value is not None}
    inputs, fields = _settings(rest, default_tokens=16)
    prompt = rest.pop("prompt", None)
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise Refused(
            400, f"prompt is {type_name(prompt)}: one text is needed, or a list with one text", param="prompt"
        )
    if "input" in inputs:
        raise Refused(400, "input goes with messages; a completion's prompt stands alone", param="input")
    inputs["prompt"] = prompt
    inputs.setdefault("prompt_template", WHOLE_PROMPT)
    return _asked(rest, inputs, {**fields, "messages": "prompt"}, chat=False)


def _asked(rest: dict[str, Any], inputs: dict[str, Any], fields: dict[str, str], *, chat: bool) -> Asked:
    """What is left in `rest` is read here to its end."""
    model = rest.pop("model", None)
    if not isinstance(model, str) or not model.strip():
        raise Refused(400, "model must name one of those that GET /v1/models lists", param="model")
    stream = _flag(rest, "stream")
    options = rest.pop("stream_options", {})
    if not isinstance(options, dict):
        raise Refused(400, f"stream_options is {type_name(options)}; an object is needed", param="stream_options")
    if options and not stream:
        raise Refused(400, "stream_options goes with stream: true", param="stream_options")
    options = {name: value for name, value in options.items() if value is not None}
    usage = _flag(options, "include_usage", "stream_options.")
    _flag(options, "include_obfuscation", "stream_options.")
    if options:
        raise Refused(400, f"stream_options.{shown(next(iter(options)), 60)} is not known", param="stream_options")
    for name in NO_EFFECT:
        rest.pop(name, None)
    for name, value in rest.items():
        if not any(type(value) is type(idle) and value == idle for idle in UNHEARD.get(name, ())):
            what = "can't be honoured" if name in UNHEARD else "is not known"
            passes = f"; what passes: {', '.join(map(json.dumps, UNHEARD[name]))}" if name in UNHEARD else ""
            raise Refused(400, f"{shown(name, 60)} {what}{passes}", param=name[:60], code="unsupported_parameter")
    return Asked(model, inputs, fields, chat, stream, usage)


def _settings(rest: dict[str, Any], default_tokens: int | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Takes the settings out of `rest`: Cog's inputs, and the field each came from."""
    inputs: dict[str, Any] = {}
    fields: dict[str, str] = {}
    for name in [name for name in NUMBERS if name in rest]:
        given, (target, kind) = rest.pop(name), NUMBERS[name]
        value = _number(name, given, kind)
        if target in inputs and inputs[target] != value:
            raise Refused(400, f"{name} and {fields[target]} say different things: give one", param=name)
        inputs[target], fields[target] = value, name
    if default_tokens is not None:
        inputs.setdefault("max_tokens", max(default_tokens, inputs.get("min_tokens", 0)))
    for name in [name for name in TEXTS if name in rest]:
        inputs[name] = _text(name, rest.pop(name))
    if "stop" in rest:
        inputs["stop_sequences"], fields["stop_sequences"] = _stops(rest.pop("stop")), "stop"
    return {name: value for name, value in inputs.items() if value not in ("", "[]")}, fields


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON's")


def _number(name: str, value: Any, kind: type) -> float | int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused(400, f"{name} is {type_name(value)}; a number is needed", param=name)
    if kind is float:
        return value
    if isinstance(value, float) and not value.is_integer():
        raise Refused(400, f"{name} is {value}; a whole number is needed", param=name)
    return int(value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise Refused(400, f"{name} is {type_name(value)}; a text is needed", param=name)
    return value


def _flag(rest: dict[str, Any], name: str, before: str = "") -> bool:
    value = rest.pop(name, False)
    if not isinstance(value, bool):
        raise Refused(400, f"{before}{name} is {type_name(value)}; true or false is needed", param=f"{before}{name}")
    return value


def _stops(value: Any) -> str:
    """As a JSON list, so that a comma in a stop sequence stays one."""
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise Refused(400, "stop must be a text, or a list of texts, none of them empty", param="stop")
    if len(stops) > MOST_STOPS:
        raise Refused(400, f"stop has {len(stops)} entries; at most {MOST_STOPS}", param="stop")
    return json.dumps(stops)


# --- messages -----------------------------------------------------------------------------------------------------
def _messages(given: Any) -> list[dict[str, Any]]:
    """OpenAI's messages with content as text, `developer` as system, and without what is null or empty. Their order
    and their roles are the server's to judge."""
    if not isinstance(given, list) or not given:
        raise Refused(400, "messages must be a list with at least one message", param="messages")
    return [_message(message, f"messages[{number}]") for number, message in enumerate(given)]


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise Refused(400, f"{where} is {type_name(message)}; an object with role and content is needed", param=where)
    made = {name: value for name, value in message.items() if value not in (None, [], {})}
    role = made.get("role")
    if not isinstance(role, str):
        raise Refused(400, f"{where}.role must be a text", param=f"{where}.role")
    made["role"] = "system" if role == "developer" else role
    for name in made.keys() - MESSAGE_FIELDS:
        raise Refused(400, f"{where}.{shown(name, 60)} can't be honoured", param=f"{where}.{name[:60]}")
    if "name" in made and role not in ("tool", "function"):
        raise Refused(400, f"{where}.name can't be honoured: templates know roles only", param=f"{where}.name")
    if "content" in made:
        made["content"] = _content(made["content"], f"{where}.content")
    elif "tool_calls" not in made:
        made["content"] = ""  # the server says which messages may be empty
    return made


def _content(value: Any, where: str) -> str:
    """A text, or text parts as one text."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise Refused(400, f"{where} is {type_name(value)}; a text or a list of text parts is needed", param=where)
    texts = []
    for number, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else type_name(part)
        if kind != "text" or not isinstance(part.get("text"), str):
            raise Refused(
                400, f"{where}[{number}] is {shown(str(kind), 40)}; only text is read", param=f"{where}[{number}]"
            )
        texts.append(part["text"])
    return "".join(texts)


def _instruction(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The one question that `input` belongs to, and a system text before it."""
    roles = [message["role"] for message in messages]
    if roles not in (["user"], ["system", "user"]):
        raise Refused(400, "input goes with one message from the user, and perhaps a system message", param="input")
    system = messages[0]["content"] if len(messages) == 2 else ""
    return {"prompt": messages[-1]["content"]} | ({"system_prompt": system} if system else {})
