"""Talking to Cog's server in tests."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import httpx

from alpaca.cogserver.schema import Endpoint
from alpaca.cogserver.server import Server

READY_SECONDS = 180.0
TRIES = 5
Start = Callable[..., Server]


class Reachable(Protocol):
    """A server, wherever it runs."""

    @property
    def url(self) -> str: ...
    @property
    def mode(self) -> Endpoint: ...


def environment(base: Path, cache: Path, **more: str) -> dict[str, str]:
    """What a server is told in tests: the base, full precision, one thread, a cache of its own."""
    own = {"BASE_MODEL": str(base), "PRECISION": "fp32", "ALPACA_CACHE": str(cache), "COG_WEIGHTS": ""}
    return {**own, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}


def post(server: Reachable, inputs: Any, **options: Any) -> httpx.Response:
    """POST a prediction (or training) and return the whole response."""
    return httpx.post(server.url + server.mode.path, json={"input": inputs}, timeout=600.0, **options)


def post_together(server: Reachable, inputs: Sequence[Any]) -> list[httpx.Response]:
    """POST all at the same time, each until it is taken: a place is free a moment after its answer was sent."""

    def until_taken(asked: Any) -> httpx.Response:
        deadline = time.monotonic() + 60
        while (response := post(server, asked)).status_code == 409 and time.monotonic() < deadline:
            time.sleep(0.05)
        return response

    with ThreadPoolExecutor(len(inputs)) as pool:
        return list(pool.map(until_taken, inputs))


def events(server: Reachable, inputs: Any, prediction: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The events of a streamed prediction, as (name, data). A 409 is asked again a few times: Cog also gives one where
    two requests come at once."""
    body = {"input": inputs, **({"id": prediction} if prediction else {})}
    headers = {"Accept": "text/event-stream"}
    for _ in range(TRIES):
        with httpx.stream("POST", server.url + server.mode.path, json=body, headers=headers, timeout=180.0) as response:
            if response.status_code == 409:
                continue
            assert response.status_code == 200
            name = ""
            for line in response.iter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    yield name, json.loads(value)
            return
    raise AssertionError("every place is taken: HTTP 409")
