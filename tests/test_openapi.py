"""Cog's HTTP contract: docs/openapi.json is what clients were promised, and whoever changes it is told what breaks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from alpaca.cogserver.entry_points import read_schema, schema_text
from alpaca.cogserver.schema import PREDICT, TRAIN, Endpoint, Schema
from alpaca.errors import OutOfRange
from alpaca.serving.inputs import request_from_inputs
from alpaca.training.config import FinetuneConfig
from alpaca.training.job_inputs import todays_names

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "docs" / "openapi.json"
ACCEPT = ".venv/bin/python -m alpaca.cogserver schema > docs/openapi.json"


# --- what changed -------------------------------------------------------------------------------------------------
class Change(NamedTuple):
    """One difference in words, and whether a client of the old schema may fail or get another answer by it."""

    text: str
    breaks: bool


# What bounds an input: its name in the schema, in words, and whether a larger value allows less.
LIMITS = {
    "minimum": ("lowest value", True),
    "maximum": ("highest value", False),
    "minLength": ("shortest text", True),
    "maxLength": ("longest text", False),
}
HARMLESS = ("description", "title", "deprecated", "x-order")


def changes(old: Schema, new: Schema) -> Iterator[Change]:
    """Every difference between two schemas, the inputs first."""
    for endpoint in (PREDICT, TRAIN):
        before, now = inputs(old, endpoint), inputs(new, endpoint)
        for name in before.keys() | now.keys():
            for change in input_changes(before.get(name), now.get(name)):
                yield Change(f"{endpoint.path}: input {name} {change.text}", change.breaks)
    for place in sorted(different(without_inputs(old), without_inputs(new))):
        yield Change(f"beside the inputs: {place}", True)


def inputs(schema: Schema, endpoint: Endpoint) -> dict[str, Schema]:
    """The inputs of an endpoint, each with its choices and whether it is required."""
    schemas = schema["components"]["schemas"]
    given = schemas.get(endpoint.input, {})
    found = {}
    for name, field in given.get("properties", {}).items():
        referred = schemas[name] if "allOf" in field else {}
        own = {key: value for key, value in field.items() if key != "allOf"}
        found[name] = {**own, **{key: referred[key] for key in ("type", "enum") if key in referred}}
        found[name]["required"] = name in given.get("required", [])
    return found


def input_changes(old: Schema | None, new: Schema | None) -> Iterator[Change]:
    """The differences of one input; None where it is not there."""
    if old is None or new is None:
        if new is not None:
            yield Change("was added" + (" and is required" if new["required"] else ""), new["required"])
        else:
            yield Change("was removed", True)
        return
    for key in sorted(old.keys() | new.keys()):
        before, now = old.get(key), new.get(key)
        if before == now:
            continue
        if key in LIMITS:
            words, larger_is_narrower = LIMITS[key]
            narrower = now is not None and (before is None or (now > before) == larger_is_narrower)
            yield Change(f"has another {words}: {shown(now)}, was {shown(before)}", narrower)
        elif key == "enum":
            narrower = now is not None and (before is None or not set(before) <= set(now))
            yield Change(f"has other choices: {shown(now)}, was {shown(before)}", narrower)
        elif key == "required":
            yield Change("became required" if now else "is no longer required", bool(now))
        elif key in HARMLESS:
            yield Change(f"has another {key}", False)
        else:
            yield Change(f"has another {key}: {shown(now)}, was {shown(before)}", True)


def without_inputs(schema: Schema) -> Schema:
    """The schema without the inputs and their choices."""
    names = {name for endpoint in (PREDICT, TRAIN) for name in inputs(schema, endpoint)}
    names |= {PREDICT.input, TRAIN.input}
    schemas = schema["components"]["schemas"]
    kept = {name: value for name, value in schemas.items() if name not in names}
    return {**schema, "components": {**schema["components"], "schemas": kept}}


def different(old: Any, new: Any, place: str = "") -> Iterator[str]:
    """Where two JSON values differ."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        if old != new:
            yield place
        return
    for key in old.keys() | new.keys():
        inner = f"{place} > {key}" if place else key
        if key in old and key in new:
            yield from different(old[key], new[key], inner)
        else:
            yield inner + (" was removed" if key in old else " was added")


def shown(value: Any) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def report(found: list[Change]) -> str:
    """What is said to whoever changed the schema."""
    lines = ["docs/openapi.json is not what predict.py and train.py say."]
    for heading, breaks in (("This breaks clients:", True), ("This breaks no client:", False)):
        listed = sorted(f"  {change.text}" for change in found if change.breaks is breaks)
        lines += [heading, *listed] if listed else []
    return "\n".join([*lines, "Where it is meant, accept it:", f"  {ACCEPT}"])


# --- the project's own --------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def made() -> Schema:
    return read_schema(ROOT)


def test_the_kept_schema_is_that_of_the_sources(made: Schema) -> None:
    kept = json.loads(KEPT.read_text(encoding="utf-8"))
    found = list(changes(kept, made))
    assert not found, report(found)
    assert KEPT.read_text(encoding="utf-8") == schema_text(made) + "\n", f"only its form changed:\n  {ACCEPT}"


def test_the_command_prints_the_kept_schema() -> None:
    command = [sys.executable, *ACCEPT.partition(" > ")[0].split()[1:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True)
    assert done.stdout == KEPT.read_text(encoding="utf-8")


EACH_ENDPOINT = pytest.mark.parametrize("endpoint", [PREDICT, TRAIN], ids=lambda endpoint: endpoint.path.strip("/"))


@EACH_ENDPOINT
def test_every_input_is_described_and_every_number_has_both_bounds(made: Schema, endpoint: Endpoint) -> None:
    for name, field in inputs(made, endpoint).items():
        assert field["description"].strip(), name
        if field["type"] in ("integer", "number"):
            assert field["minimum"] < field["maximum"], name


def test_only_the_rows_of_a_training_are_required(made: Schema) -> None:
    required = {name for endpoint in (PREDICT, TRAIN) for name, f in inputs(made, endpoint).items() if f["required"]}
    assert required == {"train_data"}


@EACH_ENDPOINT
def test_every_default_is_one_of_the_values_that_the_schema_allows(made: Schema, endpoint: Endpoint) -> None:
    kinds: dict[str, Any] = {"integer": int, "number": (int, float), "string": str, "boolean": bool}
    for name, field in inputs(made, endpoint).items():
        default = field.get("default")
        assert default is not None or field.get("nullable") or field["required"], name
        if default is None:
            continue
        assert isinstance(default, kinds[field["type"]]), name
        assert isinstance(default, bool) == (field["type"] == "boolean"), name
        if "minimum" in field:
            assert field["minimum"] <= default <= field["maximum"], name
        assert default in field.get("enum", [default]), name


def settings(values: dict[str, Any]) -> FinetuneConfig:
    renamed = {"train_template": "prompt_template_name", "train_data": "data_path"}
    return FinetuneConfig.from_sourced({renamed.get(name, name): (value, name) for name, value in values.items()})


def test_the_library_takes_every_default(made: Schema) -> None:
    asked = {name: f["default"] for name, f in inputs(made, PREDICT).items() if "default" in f}
    assert asked.pop("answer_with") == "text"  # predict.py's own: it asks for no answer
    assert request_from_inputs(**{**asked, "prompt": "hay"}) == request_from_inputs(prompt="hay")
    trained = {name: f["default"] for name, f in inputs(made, TRAIN).items() if "default" in f}
    assert settings(trained) == FinetuneConfig()


@pytest.mark.parametrize("end", ["minimum", "maximum"])
def test_the_library_takes_both_ends_of_every_range(made: Schema, end: str) -> None:
    for name, field in inputs(made, PREDICT).items():
        if end in field:
            room = {"max_tokens": 131_072} if name.startswith("min_") else {}
            assert request_from_inputs(prompt="hay", **{**room, name: field[end]})
    for name, field in inputs(made, TRAIN).items():
        if end in field:
            assert settings(todays_names({name: field[end]}))


def test_a_whole_number_written_as_a_fraction_is_taken_as_the_schema_takes_it() -> None:
    made = request_from_inputs(prompt="hay", max_new_tokens=9.0, min_tokens=2.0, n=2.0, seed=7.0)
    assert made == request_from_inputs(prompt="hay", max_tokens=9, min_tokens=2, n=2, seed=7)
    assert all(isinstance(number, int) for number in (made.max_tokens, made.min_tokens, made.n, made.seed))
    with pytest.raises(OutOfRange, match="n must be a whole number"):
        request_from_inputs(prompt="hay", n=1.5)


# --- the comparison itself ----------------------------------------------------------------------------------------
NUMBER = {"type": "integer", "minimum": 1, "maximum": 9, "default": 5, "description": "How many."}
CHOICE = {"type": "string", "enum": ["a", "b"], "default": "a"}
TEXT = {"type": "string", "maxLength": 9, "default": ""}


def schema_of(required: tuple[str, ...] = (), **fields: Schema) -> Schema:
    """A small schema with the given inputs of a prediction."""
    schemas: Schema = {PREDICT.input: {"properties": {}, "required": list(required)}}
    for name, field in fields.items():
        if "enum" in field:
            schemas[name] = {key: field[key] for key in ("type", "enum")}
            field = {"allOf": [{"$ref": name}], **{k: v for k, v in field.items() if k not in schemas[name]}}
        schemas[PREDICT.input]["properties"][name] = field
    return {"paths": {PREDICT.path: {"post": {}}}, "components": {"schemas": schemas}}


BREAKING = {
    "removed": (schema_of(), "input x was removed"),
    "higher minimum": (schema_of(x={**NUMBER, "minimum": 2}), "another lowest value: 2, was 1"),
    "lower maximum": (schema_of(x={**NUMBER, "maximum": 8}), "another highest value: 8, was 9"),
    "type": (schema_of(x={**NUMBER, "type": "number"}), 'another type: "number", was "integer"'),
    "default": (schema_of(x={**NUMBER, "default": 6}), "another default: 6, was 5"),
    "no default": (schema_of(x={k: v for k, v in NUMBER.items() if k != "default"}), "another default: none, was 5"),
    "required": (schema_of(("x",), x=NUMBER), "became required"),
    "new and required": (schema_of(("y",), x=NUMBER, y=TEXT), "input y was added and is required"),
    "choices for free values": (schema_of(x={**NUMBER, "enum": [5, 6]}), "other choices: [5, 6], was none"),
}
HARMLESS_CHANGES = {
    "added": (schema_of(x=NUMBER, y=TEXT), "input y was added"),
    "lower minimum": (schema_of(x={**NUMBER, "minimum": 0}), "another lowest value: 0, was 1"),
    "no minimum": (schema_of(x={k: v for k, v in NUMBER.items() if k != "minimum"}), "lowest value: none, was 1"),
    "higher maximum": (schema_of(x={**NUMBER, "maximum": 10}), "another highest value: 10, was 9"),
    "description": (schema_of(x={**NUMBER, "description": "So many."}), "another description"),
    "deprecated": (schema_of(x={**NUMBER, "deprecated": True}), "another deprecated"),
}


@pytest.mark.parametrize(("new", "says"), BREAKING.values(), ids=BREAKING)
def test_what_breaks_clients_is_named_as_such(new: Schema, says: str) -> None:
    (change,) = changes(schema_of(x=NUMBER), new)
    assert change.breaks and change.text.startswith("/predictions: input ") and change.text.endswith(says)


@pytest.mark.parametrize(("new", "says"), HARMLESS_CHANGES.values(), ids=HARMLESS_CHANGES)
def test_what_breaks_no_client_is_told_apart(new: Schema, says: str) -> None:
    (change,) = changes(schema_of(x=NUMBER), new)
    assert not change.breaks and change.text.endswith(says)


@pytest.mark.parametrize(
    ("old", "new", "breaks"),
    [
        (CHOICE, {**CHOICE, "enum": ["a", "b", "c"]}, False),
        (CHOICE, {**CHOICE, "enum": ["a", "c"]}, True),
        (CHOICE, {k: v for k, v in CHOICE.items() if k != "enum"}, False),
        (TEXT, {**TEXT, "maxLength": 8}, True),
        (TEXT, {**TEXT, "minLength": 1}, True),
        (TEXT, {**TEXT, "maxLength": 10}, False),
        (TEXT, {**TEXT, "pattern": "[a-z]+"}, True),
    ],
)
def test_choices_and_lengths_are_compared(old: Schema, new: Schema, breaks: bool) -> None:
    (change,) = changes(schema_of(x=old), schema_of(x=new))
    assert change.breaks is breaks


def test_an_input_that_is_no_longer_required_breaks_nothing() -> None:
    assert list(changes(schema_of(("x",), x=NUMBER), schema_of(x=NUMBER))) == [
        Change("/predictions: input x is no longer required", False)
    ]


def test_what_changes_beside_the_inputs_is_named_by_its_place() -> None:
    old, new = schema_of(x=NUMBER), schema_of(x=NUMBER)
    old["paths"][PREDICT.path]["post"]["x-cog-streaming"] = True
    new["paths"][TRAIN.path] = {}
    assert [change.text for change in changes(old, new)] == [
        "beside the inputs: paths > /predictions > post > x-cog-streaming was removed",
        "beside the inputs: paths > /trainings was added",
    ]


def test_nothing_is_said_of_equal_schemas(made: Schema) -> None:
    assert not list(changes(made, json.loads(json.dumps(made))))


def test_the_report_says_what_breaks_and_how_to_accept_it() -> None:
    old = schema_of(x=NUMBER, y=TEXT)
    text = report(list(changes(old, schema_of(x={**NUMBER, "maximum": 4, "default": 4}, z=TEXT))))
    assert text.splitlines()[1:] == [
        "This breaks clients:",
        "  /predictions: input x has another default: 4, was 5",
        "  /predictions: input x has another highest value: 4, was 9",
        "  /predictions: input y was removed",
        "This breaks no client:",
        "  /predictions: input z was added",
        "Where it is meant, accept it:",
        f"  {ACCEPT}",
    ]
