"""The entry points of a project, predict.py and train.py, and the schema that Cog's server reads of them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from alpaca.cogserver.schema import PREDICT, TRAIN, Endpoint, Schema, declares_streaming, openapi_schema
from alpaca.errors import ServerFailed
from alpaca.files import written_aside

ENTRY_POINTS = {PREDICT: "predict.py:Runner", TRAIN: "train.py:train"}
SCHEMA = Path(".cog") / "openapi_schema.json"


def read_schema(project: Path) -> Schema:
    """Make the schema of the entry points in `project`. Raises ServerFailed where there are none."""
    from cog._inspector import create_predictor

    entries: dict[Endpoint, Any] = {}
    streaming = False
    for endpoint, stub in ENTRY_POINTS.items():
        file, name = stub.split(":")
        if (project / file).is_file():
            entries[endpoint] = create_predictor(_load(project / file).__name__, name)
            streaming |= endpoint is PREDICT and declares_streaming(project / file, name)
    if not entries:
        raise ServerFailed(f"{project.resolve()} has neither predict.py nor train.py; run this in the project's folder")
    return openapi_schema(entries, streaming=streaming)


def write_schema(project: Path) -> Schema:
    """Make the schema of `project` and write it where the server looks for it, aside first. Returns it."""
    schema = read_schema(project)
    path = project / SCHEMA
    path.parent.mkdir(exist_ok=True)
    with written_aside(path) as aside:
        aside.write_text(json.dumps(schema, ensure_ascii=False), encoding="utf-8")
    return schema


def schema_text(schema: Schema) -> str:
    """The schema for people: indented, the inputs in the order of the source, the same on every machine."""
    return json.dumps(schema, ensure_ascii=False, indent=2)


def _load(path: Path) -> ModuleType:
    """Import an entry point under a name of its own; `project` may not be the folder this runs in."""
    name = f"_cog_entry_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module
