"""Requests made from the running server's own schema, right and wrong: it answers as it promises there."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import jsonschema
import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode, Response
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    positive_data_acceptance,
    response_schema_conformance,
    status_code_conformance,
)

from alpaca.cogserver.schema import TRAIN
from alpaca.cogserver.server import Server
from tests.server.over_http import Start, post

pytestmark = pytest.mark.server
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    positive_data_acceptance,
    negative_data_rejection,
]
CODED = re.compile(r": E\d{4} \w+: ")
# Inputs that can have any value without contradicting another.
STANDS_ALONE = {
    "input", "system_prompt", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "seed", "n", "adapter_scale",
}  # fmt: skip
NOT_UPLOADED = "rows.jsonl"
RIGHT_AND_WRONG = pytest.mark.parametrize(
    "mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["right", "wrong"]
)


def exchange(server: Server, mode: GenerationMode, examples: int, likely: dict[str, Any]) -> list[Response]:
    """Send `examples` requests and return the answers; each is checked against the schema.

    Half of the right ones have `likely` for inputs, beside such as need no other to make sense: work comes of those.
    """
    raw = httpx.get(f"{server.url}/openapi.json").json()
    train_data = raw["components"]["schemas"][TRAIN.input]["properties"]["train_data"]
    assert train_data.pop("format") == "uri"  # which Cog does not check; the library refuses what is none
    schema = schemathesis.openapi.from_dict(raw)
    schema.config.update(base_url=server.url)
    right = mode is GenerationMode.POSITIVE

    @schema.hook
    def flatmap_body(context: Any, body: Any) -> st.SearchStrategy[Any]:
        if not isinstance(body, dict):
            return st.just(body)
        # Cog 0.23.1 makes a folder with the name of the id, and what can't be one takes a place away for good.
        body = {name: value for name, value in body.items() if name != "id" or not isinstance(value, str)}
        given = body.get("input", {} if right else None)
        if not isinstance(given, dict):
            return st.just(body)
        for name in ("train_data", "validation_data"):
            if isinstance(given.get(name), str):
                given[name] = NOT_UPLOADED  # nothing is fetched, and no training begins
        if not right:
            return st.just(body)
        # Cog's schema calls what is optional nullable; its server takes no null.
        given = {name: value for name, value in given.items() if value is not None}
        alone = {name: value for name, value in given.items() if name in STANDS_ALONE}
        return st.sampled_from([{**body, "input": given}, {**body, "input": {**alone, **likely}}])

    # What one of several types forbids, another may allow: such a request is called wrong and is not.
    request = raw["paths"][server.mode.path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    allowed = jsonschema.Draft202012Validator({**request, "components": raw["components"]}).is_valid
    answers: list[Response] = []

    def ask(case: Case) -> None:
        response = taken(case)
        checks = [check for check in CHECKS if check is not negative_data_rejection or not allowed(case.body)]
        case.validate_response(response, checks=checks)
        if response.status_code == 200 and (answer := response.json())["status"] != "succeeded":
            assert CODED.search(answer["error"]), f"no code in: {answer['error']}"
        answers.append(response)

    settings = hypothesis.settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    strategy = schema[server.mode.path]["POST"].as_strategy(generation_mode=mode)
    settings(hypothesis.given(strategy)(ask))()
    return answers


def taken(case: Case) -> Response:
    """The answer, once there is a place: the last one's is free a moment after its answer was sent."""
    deadline = time.monotonic() + 60
    while (response := case.call(timeout=60)).status_code == 409 and time.monotonic() < deadline:
        time.sleep(0.02)
    return response


# --- predictions --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def predictor(start_server: Start, tiny_base: Path) -> Server:
    """Answers stay short, whatever max_tokens is."""
    return start_server(tiny_base, MAX_CONTEXT="64")


@RIGHT_AND_WRONG
def test_predictions_are_answered_as_the_schema_says(predictor: Server, mode: GenerationMode) -> None:
    answers = exchange(predictor, mode, 100, {"prompt": "hay"})
    assert len(answers) >= 100
    if mode is GenerationMode.POSITIVE:
        assert sum(answer.json()["status"] == "succeeded" for answer in answers) > 20
    assert post(predictor, {"prompt": "hay", "max_tokens": 8}).json()["status"] == "succeeded"


# --- trainings ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trainer(start_server: Start, tiny_base: Path) -> Server:
    return start_server(tiny_base, TRAIN)


@RIGHT_AND_WRONG
def test_trainings_are_answered_as_the_schema_says(trainer: Server, mode: GenerationMode) -> None:
    answers = exchange(trainer, mode, 60, {"train_data": NOT_UPLOADED})
    assert len(answers) >= 60
    assert "E5001" in post(trainer, {"train_data": NOT_UPLOADED}).json()["error"]
