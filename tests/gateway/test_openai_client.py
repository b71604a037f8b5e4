"""openai-python against the gateway in front of Cog's real server: every answer is the one that the server gives."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from alpaca.base.load import load_tokenizer
from alpaca.cogserver.server import Server
from alpaca.prompts.encode import encode_prompt
from alpaca.prompts.example import Example
from alpaca.prompts.find import load_template
from alpaca.serving.adapters import content_digest
from tests.gateway.running import RunningGateway
from tests.server.over_http import post

pytestmark = pytest.mark.server
HAY: list[Any] = [{"role": "user", "content": "Tell me about the alpaca."}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def client(gateway: RunningGateway) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0)


@pytest.fixture(scope="module")
def base(client: openai.OpenAI) -> str:
    return next(iter(client.models.list())).id


def cogs_own(server: Server, **inputs: Any) -> tuple[str, dict[str, Any]]:
    """What Cog's server answers without the gateway."""
    answer = post(server, {"messages": HAY, **GREEDY, **inputs}).json()
    assert answer["status"] == "succeeded", answer
    return "".join(answer["output"]), answer["metrics"]


def test_models_are_the_base_and_its_adapters(client: openai.OpenAI, base: str, tiny_base: Path) -> None:
    models = {model.id: model.model_dump() for model in client.models.list()}
    assert list(models) == [tiny_base.name, "a", "b"]
    assert models["a"]["root"] == "a" and models["a"]["parent"] == base and models[base]["parent"] is None
    assert models["a"]["created"] > 1.7e9 and models[base]["max_model_len"] == 1024
    assert client.models.retrieve("b").id == "b"
    with pytest.raises(openai.NotFoundError, match=f"There are: {base}, a, b"):
        client.models.retrieve("c")


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (None, {"adapter": "none"}),
        ("a", {"adapter": "a"}),
        ("b", {"adapter": "b"}),
        ("a@0.75", {"adapter": "a", "adapter_scale": 0.75}),
        ("a@0", {"adapter": "none"}),
        ("a:0.7+b:0.5", {"adapter": "a:0.7+b:0.5"}),
    ],
)
def test_an_answer_is_that_of_the_server_whole_and_streamed(
    client: openai.OpenAI, server: Server, base: str, model: str | None, inputs: dict[str, Any]
) -> None:
    expected, metrics = cogs_own(server, **inputs)
    whole = client.chat.completions.create(model=model or base, messages=HAY, **GREEDY)
    assert whole.choices[0].message.content == expected
    assert whole.choices[0].finish_reason == metrics["finish_reason"]
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == metrics["input_token_count"]
    assert whole.usage.completion_tokens == metrics["output_token_count"]
    chunks = list(
        client.chat.completions.create(
            model=model or base, messages=HAY, **GREEDY, stream=True, stream_options={"include_usage": True}
        )
    )
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert deltas[0].role == "assistant" and "".join(delta.content or "" for delta in deltas) == expected
    assert len([delta for delta in deltas if delta.content]) > 3 or len(expected) < 20, "it came in one piece"
    assert chunks[-2].choices[0].finish_reason == metrics["finish_reason"]
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_the_fingerprint_names_base_and_adapter(
    client: openai.OpenAI, server: Server, base: str, adapter_folder: Path
) -> None:
    said = json.loads(post(server, {"answer_with": "server"}).json()["output"][0])
    known = said["fingerprint"]
    for model, expected in ((base, f"fp_{known}"), ("a", f"fp_{known}_{content_digest(adapter_folder / 'a')[:12]}")):
        answer = client.chat.completions.create(model=model, messages=HAY, max_tokens=1)
        assert answer.system_fingerprint == expected


def test_several_answers_to_one_question(client: openai.OpenAI, base: str) -> None:
    asked: dict[str, Any] = {"model": base, "messages": HAY, "max_tokens": 6, "n": 3, "seed": 7, "temperature": 1.0}
    whole = client.chat.completions.create(**asked)
    texts = {choice.index: choice.message.content or "" for choice in whole.choices}
    assert list(texts) == [0, 1, 2] and len(set(texts.values())) == 3
    streamed = dict.fromkeys(range(3), "")
    ends: dict[int, Any] = {}
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
            ends[choice.index] = choice.finish_reason or ends.get(choice.index)
    assert streamed == texts and set(ends.values()) <= {"stop", "length"} and len(ends) == 3


def test_a_completion_goes_on_from_the_text_itself(client: openai.OpenAI, server: Server, base: str) -> None:
    answer = post(server, {"prompt": "the alpaca", "prompt_template": "{prompt}", "adapter": "none", **GREEDY}).json()
    whole = client.completions.create(model=base, prompt="the alpaca", **GREEDY)
    assert whole.choices[0].text == "".join(answer["output"])
    pieces = client.completions.create(model=base, prompt="the alpaca", **GREEDY, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text


def test_stop_sequences_with_commas_and_line_ends(client: openai.OpenAI, base: str) -> None:
    whole = client.chat.completions.create(model=base, messages=HAY, **GREEDY).choices[0].message.content or ""
    cut = whole[4:7]
    answer = client.chat.completions.create(model=base, messages=HAY, **GREEDY, stop=["\n,never", cut])
    assert answer.choices[0].message.content == whole[: whole.index(cut)]
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"model": "c"}, openai.NotFoundError, "no model 'c'"),
        ({"model": "a@9"}, openai.BadRequestError, "from 0 to 4"),
        ({"model": "a@x"}, openai.BadRequestError, "from 0 to 4"),
        ({"model": "https://example.com/a.zip"}, openai.NotFoundError, "no model"),
        ({"model": '[{"url": "https://example.com/a.zip"}]'}, openai.NotFoundError, "no model"),
        ({"model": "a:0.5+https://example.com/a.zip"}, openai.BadRequestError, "E1006"),
        ({"model": "a:0.5+a:0.5"}, openai.BadRequestError, "twice"),
        ({"model": "../a"}, openai.NotFoundError, "no model"),
        ({"temperature": 9}, openai.BadRequestError, "temperature is 9: it must be from 0 to 5"),
        ({"max_completion_tokens": 0}, openai.BadRequestError, "max_completion_tokens is 0"),
        ({"n": 6}, openai.BadRequestError, "n is 6"),
        ({"seed": -1}, openai.BadRequestError, "seed is -1"),
        ({"logprobs": True}, openai.BadRequestError, "logprobs"),
        ({"response_format": {"type": "json_object"}}, openai.BadRequestError, "response_format"),
        ({"messages": [{"role": "user", "content": " "}]}, openai.BadRequestError, "E1004"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, openai.BadRequestError, "E1004"),
        (
            {"messages": [{"role": "user", "content": "hay " * 2000}]},
            openai.BadRequestError,
            "E1002.*: the prompt is too long",
        ),
        ({"extra_body": {"prompt_template": "no_such"}}, openai.BadRequestError, "E2101"),
        ({"extra_body": {"adapter": "a"}}, openai.BadRequestError, "adapter is not known"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_can_not_be_answered_has_its_true_status(
    client: openai.OpenAI,
    base: str,
    fields: dict[str, Any],
    error: type[openai.APIStatusError],
    says: str,
    stream: bool,
) -> None:
    with pytest.raises(error, match=says.replace("[", r"\[")) as raised:
        client.chat.completions.create(**{"model": base, "messages": HAY, "stream": stream, **fields})
    assert isinstance(raised.value.body, dict) and raised.value.body["message"]


def test_the_prompt_that_is_shown_is_the_one_that_the_model_is_given(gateway: RunningGateway, tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    ids = encode_prompt(tokenizer, load_template("auto", tokenizer), Example.single("hay", "", system="Be brief."))
    asked = {"model": "a", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hay"}]}
    shown = httpx.post(f"{gateway.url}/prompt", json=asked).json()
    assert shown == {"prompt": tokenizer.decode(ids), "tokens": len(ids)}
    refused = httpx.post(f"{gateway.url}/prompt", json={**asked, "messages": [{"role": "user", "content": " "}]})
    assert refused.status_code == 400


def until(condition: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


@pytest.mark.parametrize("stream", [True, False])
def test_whoever_goes_away_frees_the_place_and_ends_the_work(
    gateway: RunningGateway, server: Server, base: str, stream: bool
) -> None:
    taken = f'alpaca_upstream_taken{{upstream="{server.url}"}}'
    gone = f'alpaca_requests_total{{model="{base}",outcome="gone"}}'
    before = gateway.metric(gone)
    body = {"model": base, "messages": HAY, "max_tokens": 900, "min_tokens": 900, "stream": stream}
    url = f"{gateway.url}/v1/chat/completions"
    deadline = time.monotonic() + 60
    while gateway.metric(gone) == before:  # a quick machine may be done before the client has gone
        assert time.monotonic() < deadline
        with httpx.Client(timeout=None) as http:
            if stream:
                with http.stream("POST", url, json=body) as response:
                    next(response.iter_lines())
            else:
                with contextlib.suppress(httpx.ReadTimeout):
                    http.post(url, json=body, timeout=0.05)
    until(lambda: gateway.metric(taken) == 0)
    until(lambda: post(server, {"prompt": "hay", "max_tokens": 2}).json()["metrics"]["batch_size"] == 1.0)


# What Open WebUI sends: a chat, and the title that it asks for afterwards.
WEBUI: list[dict[str, Any]] = [
    {
        "stream": True, "messages": [{"role": "user", "content": "hay"}], "stream_options": {"include_usage": True},
    },
    {
        "stream": True, "temperature": 0.8, "top_p": 0.9, "max_tokens": 5, "stop": ["###"], "seed": 42,
        "frequency_penalty": 0.5, "messages": [
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "hay"}]},
            {"role": "assistant", "content": "Grass."}, {"role": "user", "content": "And straw?"}],
    },
    {
        "stream": False, "max_completion_tokens": 5,
        "messages": [{"role": "user", "content": "### Task:\nGenerate a concise, 3-5 word title …"}],
    },
]  # fmt: skip


@pytest.mark.parametrize("body", WEBUI)
def test_the_requests_of_open_webui(gateway: RunningGateway, base: str, body: dict[str, Any]) -> None:
    answer = httpx.post(f"{gateway.url}/v1/chat/completions", json={"max_tokens": 5, **body, "model": base}
                        if "max_completion_tokens" not in body else {**body, "model": base}, timeout=60)  # fmt: skip
    assert answer.status_code == 200
    if body["stream"]:
        lines = [line for line in answer.text.split("\n") if line]
        assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    else:
        assert answer.json()["choices"][0]["message"]["role"] == "assistant"
