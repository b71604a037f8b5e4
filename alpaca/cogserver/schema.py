"""The OpenAPI schema that Cog's server reads from .cog/openapi_schema.json.

Cog's command line makes it when an image is built. Here it is made from what Cog's own inspector says of the entry
points, predictions and trainings together, so that every server in a folder finds the same file.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca.errors import ConflictingInputs, OutOfRange

Schema = dict[str, Any]


@dataclass(frozen=True)
class Endpoint:
    """What a mode of the server is called in the schema."""

    path: str
    input: str
    output: str
    request: str
    response: str
    stub: str
    """The environment variable that names the entry point to the server."""


PREDICT = Endpoint(
    "/predictions", "Input", "Output", "PredictionRequest", "PredictionResponse", "COG_PREDICT_TYPE_STUB"
)
TRAIN = Endpoint(
    "/trainings", "TrainingInput", "TrainingOutput", "TrainingRequest", "TrainingResponse", "COG_TRAIN_TYPE_STUB"
)
TEXTS = ("id", "version", "created_at", "started_at", "completed_at", "error", "logs")
STATUS = ("starting", "processing", "succeeded", "canceled", "failed")
FAULTS = "HTTPValidationError"
"""What the schema calls the list of what is wrong with the inputs."""


def openapi_schema(entries: Mapping[Endpoint, Any], *, streaming: bool) -> Schema:
    """One schema for the given endpoints; the values are Cog's PredictorInfo of each entry point."""
    schemas: Schema = {}
    paths: Schema = {}
    for endpoint, info in entries.items():
        streams = streaming and endpoint is PREDICT
        schemas |= _component_schemas(endpoint, info)
        post: Schema = {
            "requestBody": {"content": {"application/json": {"schema": _ref(endpoint.request)}}, "required": True},
            "responses": _responses(endpoint, streams=streams),
        }
        if streams:
            post["x-cog-streaming"] = True  # without it the server answers 406 to whoever asks for events
        paths[endpoint.path] = {"post": post}
    schemas[FAULTS] = _faults()
    return {
        "openapi": "3.0.2",
        "info": {"title": "Cog", "version": "0.1.0"},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def declares_streaming(source: Path, class_name: str) -> bool:
    """Whether `run` in the class is decorated with @streaming. The decorator leaves no trace but in the source."""
    return any(ast.unparse(d).split("(")[0].endswith("streaming") for d in _decorators(source, class_name))


def declared_concurrency(source: Path, class_name: str) -> int:
    """How many predictions at once @concurrent(max=…) allows; 1 without it."""
    for decorator in _decorators(source, class_name):
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith("concurrent"):
            return next(int(ast.literal_eval(k.value)) for k in decorator.keywords if k.arg == "max")
    return 1


def _decorators(source: Path, class_name: str) -> list[ast.expr]:
    """The decorators of `run` in the class, in their order."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            methods = [m for m in node.body if isinstance(m, ast.FunctionDef | ast.AsyncFunctionDef)]
            return [d for m in methods if m.name in ("run", "predict") for d in m.decorator_list]
    return []


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _responses(endpoint: Endpoint, *, streams: bool) -> Schema:
    """Every answer that the server gives to a request, by its status."""
    answer = {"application/json": {"schema": _ref(endpoint.response)}}
    text = {"text/plain": {"schema": {"type": "string"}}}
    events = {"text/event-stream": {"schema": {"type": "string"}}} if streams else {}
    faults = {"application/json": {"schema": _ref(FAULTS)}}
    answers: dict[str, tuple[str, Schema]] = {
        "200": ("Ended; status says whether it succeeded, failed (with its error) or was canceled", answer | events),
        "202": ("Begun: the request had the header Prefer: respond-async", answer),
        "400": ("The body is not JSON", text),
        "409": ("Every place is taken; ask again", answer),
        "413": ("The body is too large", text),
        "415": ("The body is not declared as application/json", text),
        "422": ("An input is not as this schema has it", faults | text),
        "503": ("The server is not ready yet", answer),
    }
    return {status: {"description": says, "content": content} for status, (says, content) in answers.items()}


def _faults() -> Schema:
    """The body of a 422: each fault with the place of the input, what is wrong with it, and its kind."""
    fault = {"loc": {"type": "array", "items": {"type": "string"}}, "msg": {"type": "string"}}
    item = {"type": "object", "properties": {**fault, "type": {"type": "string"}}, "required": ["loc", "msg", "type"]}
    detail = {"type": "array", "items": item}
    return {"title": FAULTS, "type": "object", "properties": {"detail": detail}, "required": ["detail"]}


def _component_schemas(endpoint: Endpoint, info: Any) -> Schema:
    properties: Schema = {}
    required: list[str] = []
    enums: Schema = {}
    for name, field in info.inputs.items():
        properties[name], optional = _property(name, field)
        if field.choices:
            enums[name] = {"title": name, "description": "An enumeration.", "enum": field.choices}
            enums[name] |= field.type.primitive.json_type()
        if field.default is None and not optional:
            required.append(name)
    answer: Schema = {name: {"type": "string"} for name in TEXTS}
    answer |= {
        "input": _ref(endpoint.input),
        "output": _ref(endpoint.output),
        "status": {"type": "string", "enum": list(STATUS)},
        "metrics": {"type": "object"},
    }
    given: Schema = {"id": {"type": "string"}, "input": _ref(endpoint.input)}
    return {
        endpoint.input: {"title": endpoint.input, "type": "object", "properties": properties}
        | ({"required": required} if required else {}),
        endpoint.output: info.output.json_type() | {"title": endpoint.output},
        endpoint.request: {"title": endpoint.request, "type": "object", "properties": given}
        | ({"required": ["input"]} if required else {}),
        endpoint.response: {
            "title": endpoint.response,
            "type": "object",
            "properties": answer,
            "required": ["status"],
        },
        **enums,
    }


def _property(name: str, field: Any) -> tuple[Schema, bool]:
    """The schema of one input, and whether it may be left out without a default."""
    optional = field.type.repetition.name.startswith("OPTIONAL")
    if field.choices:
        prop: Schema = {"allOf": [_ref(name)]}
    else:
        prop = {"title": name.replace("_", " ").title(), **field.type.json_type()}
    prop["x-order"] = field.order
    limits = {"minimum": field.ge, "maximum": field.le, "minLength": field.min_length, "maxLength": field.max_length}
    limits |= {"default": field.default, "description": field.description, "pattern": field.regex}
    prop |= {key: _whole(value) for key, value in limits.items() if value is not None}
    if optional:
        prop["nullable"] = True
    if field.deprecated:
        prop["deprecated"] = True
    return prop, optional


def _whole(value: Any) -> Any:
    """A whole float as an int, so that the server says "at most 5" and not 5.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def parse_inputs(given: list[str], schemas: Schema) -> dict[str, Any]:
    """Turn name=value texts into inputs of the types that the schema wants."""
    known = schemas[PREDICT.input]["properties"]
    inputs: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            problem = f"there is no input '{name}'" if equals else f"'{text}' is not name=value"
            raise OutOfRange(f"{problem}. Inputs: {', '.join(known)}")
        if name in inputs:
            raise ConflictingInputs(f"{name} is given twice")
        kind = known[name].get("type", "string")
        try:
            inputs[name] = value if kind == "string" else json.loads(value)
        except ValueError:
            raise OutOfRange(f"{name}={value}: a value of type {kind} is wanted") from None
    return inputs
