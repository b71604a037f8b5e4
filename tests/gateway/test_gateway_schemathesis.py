"""Requests made from the gateway's own description, right and wrong: it answers as it promises there."""

from __future__ import annotations

from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from tests.gateway.running import RunningGateway

pytestmark = [pytest.mark.server, pytest.mark.long]
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
POSTS = ("/v1/chat/completions", "/v1/completions", "/prompt")


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["right", "wrong"])
@pytest.mark.parametrize("path", POSTS)
def test_requests_are_answered_as_the_description_says(
    gateway: RunningGateway, path: str, mode: GenerationMode
) -> None:
    raw = httpx.get(f"{gateway.url}/openapi.json").json()
    base = httpx.get(f"{gateway.url}/v1/models").json()["data"][0]["id"]
    schema = schemathesis.openapi.from_dict(raw)
    schema.config.update(base_url=gateway.url)
    right = mode is GenerationMode.POSITIVE

    @schema.hook
    def map_body(context: Any, body: Any) -> Any:
        """Half of the right ones name a model that is there, have few tokens, and a message that can be answered."""
        if not right or not isinstance(body, dict):
            return body
        likely = {"messages": [{"role": "user", "content": "hay"}]} if "messages" in body else {"prompt": "hay"}
        short = {"model": base, "max_tokens": 4, "min_tokens": 0, "n": min(body.get("n") or 1, 2), **likely}
        kept = {name: value for name, value in body.items() if name not in ("max_completion_tokens", "input", "stop")}
        return {**kept, **short} if len(str(body)) % 2 else body

    statuses: list[int] = []

    def ask(case: Case) -> None:
        response = case.call(timeout=60)
        case.validate_response(response, checks=CHECKS)
        statuses.append(response.status_code)

    settings = hypothesis.settings(
        max_examples=25, derandomize=True, database=None, deadline=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    strategy: st.SearchStrategy[Case] = schema[path]["POST"].as_strategy(generation_mode=mode)
    settings(hypothesis.given(strategy)(ask))()
    assert len(statuses) >= 25
    if right:
        assert statuses.count(200) > 5, statuses


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/openapi.json", "/v1/models/a"])
def test_what_is_read_is_as_the_description_says(gateway: RunningGateway, path: str) -> None:
    answer = httpx.get(gateway.url + path)
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
