"""The gateway's own description in OpenAPI: what it takes and answers."""

from __future__ import annotations

from typing import Any

from alpaca.gateway.asked import MOST_STOPS, NO_EFFECT, NUMBERS

Schema = dict[str, Any]
RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 5),
    "top_p": (0, 1),
    "top_k": (-1, 100_000),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 5),
    "presence_penalty": (-5, 5),
    "frequency_penalty": (-5, 5),
    "seed": (0, 2**32 - 1),
    "n": (1, 5),
    "max_tokens": (1, 131_072),
    "max_completion_tokens": (1, 131_072),
    "min_tokens": (-1, 131_072),
}
"""Those of our own server; another one's schema may have others, which hold for it."""
SAYS = {
    "400": "A field is wrong or can't be honoured; `param` names it.",
    "401": "Keys are asked for, and this is none.",
    "404": "There is no such model, or no such route.",
    "408": "The body took too long.",
    "413": "The body is too large.",
    "415": "The body is not JSON by its Content-Type.",
    "421": "The gateway was called by a name that is not its own.",
    "429": "The queue is full, or the key's limit is reached; see Retry-After.",
    "500": "The server failed.",
    "501": "This server can't show its prompts.",
    "502": "The server broke off.",
    "503": "No server is ready, or no turn came in time; see Retry-After.",
}


def openapi(body_bytes: int) -> Schema:
    """The description, as GET /openapi.json answers it."""
    chat = {"messages": {"type": "array", "minItems": 1, "items": _ref("Message")}, "input": {"type": "string"}}
    completion = {"prompt": {"anyOf": [{"type": "string"}, _list({"type": "string"}, 1, 1)]}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Alpaca gateway",
            "version": "1",
            "description": f"OpenAI's routes in front of servers of Cog's. A body may have {body_bytes:,} bytes.",
        },
        "security": [{}, {"key": []}],
        "paths": {
            "/v1/models": {"get": _get("The models there are", _ref("Models"), "401", "503")},
            "/v1/models/{name}": {
                "get": _get("One of them", _ref("Model"), "401", "404", "503")
                | {"parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]}
            },
            "/v1/chat/completions": {"post": _post("The next message of a conversation", "Chat", _ref("Answer"))},
            "/v1/completions": {"post": _post("The text that follows a prompt", "Completion", _ref("Answer"))},
            "/prompt": {"post": _post("What the model would see of a conversation", "Chat", _ref("Prompt"), "501")},
            "/health": {"get": _get("Whether a server is ready", {"type": "object"}, "503", plain=True)},
        },
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "Chat": _body(chat, "messages"),
                "Completion": _body(completion, "prompt"),
                "Message": _message(),
                "Answer": _object({"id": "string", "object": "string", "model": "string", "choices": "array"}),
                "Prompt": _object({"prompt": "string", "tokens": "integer"}),
                "Model": _object({"id": "string", "object": "string", "created": "integer", "owned_by": "string"}),
                "Models": {
                    "type": "object",
                    "required": ["object", "data"],
                    "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": _ref("Model")}},
                },
                "Error": {
                    "type": "object",
                    "required": ["error"],
                    "properties": {
                        "error": {
                            "type": "object",
                            "required": ["message", "type", "param", "code"],
                            "properties": {
                                "message": {"type": "string"},
                                "type": {"type": "string"},
                                "param": {"type": ["string", "null"]},
                                "code": {"type": ["string", "null"]},
                            },
                        }
                    },
                },
            },
        },
    }


def _body(own: Schema, required: str) -> Schema:
    """A request's body: the fields that both routes share, and `own`."""
    numbers = {
        name: {
            "type": ["integer" if kind is int else "number", "null"],
            "minimum": RANGES[name][0],
            "maximum": RANGES[name][1],
        }
        for name, (_, kind) in NUMBERS.items()
    }
    stop = {"type": "string", "minLength": 1, "maxLength": 512}
    return {
        "type": "object",
        "required": ["model", required],
        "additionalProperties": False,
        "properties": {
            "model": {"type": "string", "minLength": 1},
            **own,
            **numbers,
            "stop": {"anyOf": [stop, _list(stop, 1, MOST_STOPS), {"type": "null"}]},
            "stream": {"type": ["boolean", "null"]},
            "stream_options": {
                "type": "object",
                "additionalProperties": False,
                "properties": {"include_usage": {"type": "boolean"}},
            },
            "prompt_template": {"type": "string"},
            **{name: {"type": "object" if name == "metadata" else "string"} for name in NO_EFFECT},
        },
    }


def _message() -> Schema:
    part = {
        "type": "object",
        "required": ["type", "text"],
        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    }
    return {
        "type": "object",
        "required": ["role", "content"],
        "additionalProperties": False,
        "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
            "content": {"anyOf": [{"type": "string"}, _list(part, 1, 100)]},
        },
    }


def _get(says: str, schema: Schema, *errors: str, plain: bool = False) -> Schema:
    return {"summary": says, "responses": _responses(says, schema, (*errors, "421"), plain=plain)}


def _post(says: str, body: str, schema: Schema, *errors: str) -> Schema:
    return {
        "summary": says,
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(body)}}},
        "responses": _responses(says, schema, (*(status for status in SAYS if status != "501"), *errors)),
    }


def _responses(says: str, schema: Schema, errors: tuple[str, ...], *, plain: bool = False) -> Schema:
    event = _object({"data": "string"})  # before OpenAPI 3.2, the schema of a stream is that of each event
    streamed = {"text/event-stream": {"schema": event}} if schema == _ref("Answer") else {}
    answers: Schema = {
        "200": {"description": says, "content": {"application/json": {"schema": schema}, **streamed}},
    }
    for status in sorted(errors):
        content = schema if plain and status == "503" else _ref("Error")
        answers[status] = {"description": SAYS[status], "content": {"application/json": {"schema": content}}}
    return answers


def _object(properties: dict[str, str]) -> Schema:
    return {
        "type": "object",
        "required": list(properties),
        "properties": {name: {"type": kind} for name, kind in properties.items()},
    }


def _list(items: Schema, least: int, most: int) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}
