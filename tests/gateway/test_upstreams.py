"""Several servers, other models than ours, and servers that die: Cog's real server with a model that says what it is
told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.gateway.running import CogProcess, RunningGateway, error_of, other_model, text_of

pytestmark = [pytest.mark.server, pytest.mark.long]
Pair = tuple[RunningGateway, CogProcess, CogProcess]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A gateway with two servers, each of one place."""
    folder = tmp_path_factory.mktemp("others")
    with CogProcess(other_model(folder / "one")) as one, CogProcess(other_model(folder / "two")) as two:
        options = ("--name", "echo", "--places", "1")
        with RunningGateway(*options, upstreams=[one.url, two.url]) as gateway:
            yield gateway.wait(2), one, two


def taken(gateway: RunningGateway, server: CogProcess) -> bool:
    return gateway.metric(f'alpaca_upstream_taken{{upstream="{server.url}"}}') > 0


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def test_any_model_with_a_prompt_is_asked_in_openais_words(pair: Pair) -> None:
    gateway = pair[0]
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0)
    assert [model.id for model in client.models.list()] == ["echo"]
    said = client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "hay and grass"}])
    assert said.choices[0].message.content == "hay and grass" and said.usage is None
    streamed = client.completions.create(model="echo", prompt="hay and grass", max_tokens=2, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == "hay and"
    talk: list[Any] = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "hay"},
        {"role": "assistant", "content": "grass"}, {"role": "user", "content": "and?"},
    ]  # fmt: skip
    said = client.chat.completions.create(model="echo", messages=talk, max_tokens=99)
    assert (
        said.choices[0].message.content
        == "System: Be brief.\n\nUser: hay\n\nAssistant: grass\n\nUser: and?\n\nAssistant:"
    )


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"seed": 1}, 400, "seed"),
        ({"n": 2}, 400, "n"),
        ({"stop": "x"}, 400, "stop"),
        ({"temperature": 3}, 400, "temperature"),
        ({"model": "echo@0.5"}, 400, "model"),
        ({"content": "fail now"}, 500, None),
    ],
)
def test_what_it_has_no_input_for_is_refused_and_its_failure_is_a_500(
    pair: Pair, fields: dict[str, Any], status: int, param: str | None
) -> None:
    answer = pair[0].chat(**{"model": "echo", **fields})
    assert answer.status_code == status and error_of(answer)["param"] == param


def test_it_says_that_prompts_can_not_be_shown(pair: Pair) -> None:
    asked = {"model": "echo", "messages": [{"role": "user", "content": "hay"}]}
    answer = httpx.post(f"{pair[0].url}/prompt", json=asked)
    assert answer.status_code == 501 and error_of(answer)["type"] == "server_error"


def test_more_requests_than_places_wait_and_nobody_sees_a_409(pair: Pair) -> None:
    gateway = pair[0]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda n: gateway.chat(f"sleep:0.1 {n}", model="echo"), range(12)))
    assert [text_of(answer).strip() for answer in answers] == [str(n) for n in range(12)]
    assert max(int(answer.headers["x-queue-position"]) for answer in answers) >= 5


def test_places_that_the_server_does_not_have_are_waited_for(pair: Pair) -> None:
    """Told that each server has four, the gateway meets Cog's 409, and its clients do not."""
    with RunningGateway("--name", "echo", "--places", "4", upstreams=[pair[1].url]) as gateway:
        gateway.wait()
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda n: gateway.chat(f"sleep:0.2 {n}", model="echo"), range(6)))
    assert [text_of(answer).strip() for answer in answers] == [str(n) for n in range(6)]


def test_one_that_dies_before_any_text_is_replaced_by_the_other(pair: Pair) -> None:
    gateway, *servers = pair
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(gateway.chat, "sleep:3 hay", model="echo")
        until(lambda: any(taken(gateway, server) for server in servers))
        server = next(server for server in servers if taken(gateway, server))
        server.kill()
        assert text_of(answer.result()).strip() == "hay"
    gateway.wait(1)
    server.start()
    gateway.wait(2)  # it comes back by itself


@pytest.mark.parametrize("stream", [True, False])
def test_one_that_dies_in_the_middle_ends_the_answer_with_an_error(pair: Pair, stream: bool) -> None:
    gateway, *servers = pair
    seen: dict[str, Any] = {}

    def ask() -> None:
        body = {"model": "echo", "messages": [{"role": "user", "content": "hay sleep:3 grass"}], "stream": stream}
        with httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json=body, timeout=60) as response:
            seen["status"] = response.status_code
            seen["lines"] = [line for line in response.iter_lines() if line]

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: any(taken(gateway, server) for server in servers))
    server = next(server for server in servers if taken(gateway, server))
    time.sleep(1)  # "hay" has come, "grass" has not
    server.kill()
    asking.join()
    if stream:
        assert seen["status"] == 200 and '"content": "hay"' in seen["lines"][1]
        assert "broke off" in json.loads(seen["lines"][-1].removeprefix("data: "))["error"]["message"]
    else:
        assert seen["status"] == 502 and "broke off" in seen["lines"][0]
    assert text_of(gateway.chat("straw", model="echo")) == "straw", "the other one answers meanwhile"
    server.start()
    gateway.wait(2)


def test_without_any_server_the_truth_is_told_and_the_first_that_comes_is_used(tmp_path: Path) -> None:
    with (
        CogProcess(other_model(tmp_path)) as server,
        RunningGateway("--name", "echo", upstreams=[server.url]) as gateway,
    ):
        until(lambda: _answers(gateway))
        if httpx.get(f"{gateway.url}/v1/models").status_code == 503:  # the server has not started yet
            assert gateway.chat(model="no-such-model").status_code in (404, 503)
        gateway.wait()
        assert text_of(gateway.chat(model="echo")) == "hay"
        server.kill()
        until(lambda: httpx.get(f"{gateway.url}/health").status_code == 503)
        answer = gateway.chat(model="echo")
        assert answer.status_code == 503 and answer.headers["retry-after"]
        assert "no server is ready" in error_of(answer)["message"]
        server.start()
        gateway.wait()
        assert text_of(gateway.chat(model="echo")) == "hay"


def _answers(gateway: RunningGateway) -> bool:
    try:
        return bool(httpx.get(f"{gateway.url}/health").status_code)
    except httpx.TransportError:
        return False
