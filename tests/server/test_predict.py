"""Predictions over HTTP on Cog's real server."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from alpaca.base.load import load_model, load_tokenizer
from alpaca.cogserver.server import Server
from alpaca.errors import ServerFailed
from tests.server.over_http import Start, events, post, post_together

pytestmark = pytest.mark.server
GREEDY = {"temperature": 0, "max_tokens": 24}
LONG = {"prompt": "hay", "max_tokens": 900, "min_tokens": 900, "seed": 1}


@pytest.fixture(scope="module")
def oracle(tiny_base: Path) -> Any:
    """What transformers answers, greedily, to messages."""
    model, tokenizer = load_model(tiny_base, "fp32"), load_tokenizer(tiny_base)

    def answer(*messages: tuple[str, str], tokens: int = 24) -> str:
        said = [{"role": role, "content": content} for role, content in messages]
        ids = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_tensors="pt", return_dict=False)
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=3, max_new_tokens=tokens
        )
        return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)

    return answer


def output(response: httpx.Response) -> str:
    body = response.json()
    assert response.status_code == 200 and body["status"] == "succeeded", body
    return "".join(body["output"] or [])


def wait_idle(server: Server) -> None:
    """Until a place is free again."""
    deadline = time.monotonic() + 60
    while server.health()["status"] != "READY":
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- answers ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("prompt", ["hay", "你好，羊驼 🦙👩‍🔬", "a {prompt} b\né" * 3])
def test_a_greedy_answer_is_that_of_generate(served: Server, oracle: Any, prompt: str) -> None:
    assert output(post(served, {"prompt": prompt, **GREEDY})) == oracle(("user", prompt))


def test_metrics_tell_what_it_took(served: Server) -> None:
    metrics = post(served, {"prompt": "hay", **GREEDY, "seed": 0}).json()["metrics"]
    assert metrics["output_token_count"] <= 24 and metrics["input_token_count"] > 0
    assert 0 < metrics["time_to_first_token"] <= metrics["predict_time"]
    assert metrics["tokens_per_second"] > 0
    assert metrics["finish_reason"] in ("stop", "length") and metrics["seed"] == 0


def test_text_streams_while_it_is_made(served: Server, oracle: Any) -> None:
    names = []
    completed: dict[str, Any] = {}
    for name, data in events(served, LONG):
        completed = data
        if name == "output" and "output" not in names:
            # The first text is here, and the rest is made beside another whole answer.
            assert output(post(served, {"prompt": "hay", **GREEDY})) == oracle(("user", "hay"))
        names.append(name)
    assert names[0] == "start" and names[-1] == "completed"
    assert completed["status"] == "succeeded" and completed["metrics"]["output_token_count"] == 900
    assert names.count("output") > 100


def test_the_stream_and_the_whole_are_the_same(served: Server, oracle: Any) -> None:
    prompt = "你好 🦙 and hay"
    pieces = [data["chunk"] for name, data in events(served, {"prompt": prompt, **GREEDY}) if name == "output"]
    assert "".join(pieces) == oracle(("user", prompt))
    assert all(pieces)


def test_two_predictions_after_each_other_keep_their_own_settings(served: Server, oracle: Any) -> None:
    drawn = {"prompt": "hay", "temperature": 1.5, "seed": 4, "repetition_penalty": 1.5, "max_tokens": 24}
    first = output(post(served, drawn))
    assert output(post(served, {"prompt": "hay", **GREEDY})) == oracle(("user", "hay")) != first
    assert output(post(served, drawn)) == first


def test_a_conversation_with_a_system_prompt(served: Server, oracle: Any) -> None:
    said = [("system", "Be short."), ("user", "hay?"), ("assistant", "Yes."), ("user", "grass?")]
    messages = [{"role": role, "content": content} for role, content in said]
    assert output(post(served, {"messages": messages, **GREEDY})) == oracle(*said)
    without = {"messages": messages[1:], "system_prompt": "Be short.", **GREEDY}
    assert output(post(served, without)) == oracle(*said)


def test_input_is_put_below_the_prompt(served: Server, oracle: Any) -> None:
    assert output(post(served, {"prompt": "a", "input": "b", **GREEDY})) == oracle(("user", "a\n\nb"))


def test_several_answers_are_several_items(served: Server) -> None:
    items = post(served, {"prompt": "hay", "n": 3, "seed": 5, "max_tokens": 16}).json()["output"]
    assert len(items) == 3 and len({item.strip() for item in items}) == 3
    assert [item.startswith("\n\n") for item in items[1:]] == [True, True]
    assert items[0] == output(post(served, {"prompt": "hay", "seed": 5, "max_tokens": 16}))


def test_stop_sequences_end_the_answer_unseen(served: Server) -> None:
    whole = output(post(served, {"prompt": "hay", "seed": 2, "max_tokens": 60}))
    stop = whole[len(whole) // 2 :][:3].replace(",", "")
    response = post(served, {"prompt": "hay", "seed": 2, "max_tokens": 60, "stop_sequences": f"never,{stop}"})
    assert output(response) == whole[: whole.index(stop)]
    assert response.json()["metrics"]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("older", "tokens"), [({"max_new_tokens": 5}, 5), ({"max_new_tokens": 9, "min_new_tokens": 9}, 9)], ids=str
)
def test_older_names_still_work(served: Server, older: dict[str, int], tokens: int) -> None:
    response = post(served, {"prompt": "hay", "temperature": 0, **older})
    assert output(response) is not None
    assert response.json()["metrics"]["output_token_count"] == tokens


def test_total_tokens_counts_prompt_and_answer(served: Server) -> None:
    metrics = post(served, {"prompt": "hay", "temperature": 0, "total_tokens": 40}).json()["metrics"]
    assert metrics["input_token_count"] + metrics["output_token_count"] == 40


# --- many at once -------------------------------------------------------------------------------------------------
def test_eight_predictions_run_in_one_batch(served: Server, oracle: Any) -> None:
    prompts = [f"hay {number}" for number in range(8)]
    responses = post_together(served, [{"prompt": prompt, "temperature": 0, "max_tokens": 120} for prompt in prompts])
    assert [output(response) for response in responses] == [oracle(("user", p), tokens=120) for p in prompts]
    responses = post_together(served, [{**LONG, "seed": seed} for seed in range(8)])
    assert max(response.json()["metrics"]["batch_size"] for response in responses) > 1


def test_metrics_and_logs_of_concurrent_predictions_are_their_own(served: Server) -> None:
    sizes = [3, 30, 60, 90]
    asked = [{"prompt": "hay", "max_tokens": n, "min_tokens": n, "seed": n} for n in sizes]
    bodies = [response.json() for response in post_together(served, asked)]
    assert [body["metrics"]["output_token_count"] for body in bodies] == sizes
    assert [body["metrics"]["seed"] for body in bodies] == sizes
    assert all(f"output_token_count {n}," in body["logs"] for n, body in zip(sizes, bodies, strict=True))


def test_more_predictions_than_places_wait_for_their_turn(served: Server) -> None:
    asked = {"prompt": "hay", "max_tokens": 60, "min_tokens": 60, "seed": 1}
    bodies = [response.json() for response in post_together(served, [asked] * 40)]
    assert {body["status"] for body in bodies} == {"succeeded"}
    assert len({"".join(body["output"]) for body in bodies}) == 1
    queued = sorted(body["metrics"]["queue_time"] for body in bodies)
    assert queued[0] < queued[-1], "there are sixteen places"
    assert max(body["metrics"]["batch_size"] for body in bodies) > 8


def test_two_hundred_at_once_are_answered_or_told_to_ask_again(start_server: Start, tiny_base: Path) -> None:
    server = start_server(tiny_base, QUEUE_SECONDS="1")
    limits = httpx.Limits(max_connections=200)
    with httpx.Client(timeout=180, limits=limits) as http, ThreadPoolExecutor(200) as pool:

        def ask(seed: int) -> httpx.Response:
            return http.post(server.url + "/predictions", json={"input": {**LONG, "seed": seed}})

        asked = [pool.submit(ask, seed) for seed in range(200)]
        deadline = time.monotonic() + 60
        while server.health()["status"] != "BUSY":
            assert time.monotonic() < deadline
        responses = [answer.result() for answer in asked]
    refused = [response for response in responses if response.status_code == 409]
    bodies = [response.json() for response in responses if response.status_code == 200]
    late = [body for body in bodies if body["status"] == "failed"]
    assert len(refused) + len(bodies) == 200 and refused and late
    assert all("E1105 NoTurn: no turn came within 1 s" in body["error"] for body in late)
    assert len(bodies) - len(late) >= 8, "so many of this length fit into the memory at once"
    wait_idle(server)
    assert post(server, {"prompt": "hay"}).json()["status"] == "succeeded"


def test_a_running_server_is_compared_with(served: Server, oracle: Any) -> None:
    from alpaca.compare.over_http import ask_server

    asked = [{"prompt": f"hay {number}", "adapter": "none", **GREEDY} for number in range(12)]
    expected = [oracle(("user", f"hay {number}")).strip() for number in range(12)]
    assert ask_server(served.url, asked) == expected  # more at once than it takes
    with pytest.raises(ServerFailed, match="E4001"):
        ask_server(served.url, [{"prompt": "hay", "adapter": "not-there"}])


# --- bad input ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"n": 6}, "n"),
        ({"seed": None}, "seed"),
        ({"seed": -1}, "seed"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [1]}, "messages/0"),
        ({"prompt": 5}, "prompt"),
        ({"adapter_scale": 5}, "adapter_scale"),
    ],
    ids=str,
)
def test_inputs_out_of_the_schema_are_422(served: Server, inputs: dict[str, Any], field: str) -> None:
    response = post(served, {"prompt": "hay", **inputs})
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", "input", field]


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        ({}, "E1001 EmptyPrompt"),
        ({"prompt": " "}, "E1001 EmptyPrompt"),
        ({"prompt": "你" * 2000}, "E1002 PromptTooLong"),
        ({"prompt": "a", "stop_sequences": "x" * 300}, "E1003 OutOfRange"),
        ({"messages": [{"role": "user"}]}, "E1004 BadMessages"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "E1004 BadMessages"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "E1005 ConflictingInputs"),
        ({"prompt": "a", "min_tokens": 9, "max_tokens": 5}, "E1005 ConflictingInputs"),
        ({"prompt": "a", "prompt_template": "no-such"}, "E2101 TemplateNotFound"),
        ({"prompt": "a", "prompt_template": "../../etc/passwd"}, "E2101 TemplateNotFound"),
        ({"prompt": "a", "prompt_template": "{{ prompt }}"}, "E2102 BadTemplate"),
    ],
    ids=str,
)
def test_what_the_schema_cannot_know_fails_with_a_code(served: Server, inputs: dict[str, Any], code: str) -> None:
    response = post(served, inputs)
    assert (response.status_code, response.json()["status"]) == (200, "failed")
    error = response.json()["error"]
    assert f": {code}: " in error
    assert [error.count(word) for word in code.split()] == [1, 1], "the code once, the message once"


def test_what_is_no_json_is_400_and_what_says_so_is_415(served: Server) -> None:
    url = served.url + "/predictions"
    assert httpx.post(url, content=b"{bad", headers={"Content-Type": "application/json"}).status_code == 400
    assert httpx.post(url, content=b'{"input": {}}', headers={"Content-Type": "text/plain"}).status_code == 415
    assert httpx.post(url, json=[]).status_code == 422


def test_after_all_that_it_still_answers(served: Server, oracle: Any) -> None:
    assert output(post(served, {"prompt": "hay", "unknown": 1, **GREEDY})) == oracle(("user", "hay"))


# --- cancelling ---------------------------------------------------------------------------------------------------
def test_a_cancelled_prediction_frees_its_place(served: Server, oracle: Any) -> None:
    cancelled = None
    completed: dict[str, Any] = {}
    for name, data in events(served, LONG, prediction="one"):
        completed = data
        if name == "output" and cancelled is None:
            cancelled = httpx.post(f"{served.url}/predictions/one/cancel")
    assert cancelled is not None and cancelled.status_code == 200
    assert completed["status"] == "canceled"
    wait_idle(served)
    assert output(post(served, {"prompt": "hay", **GREEDY})) == oracle(("user", "hay"))


@pytest.mark.parametrize("streaming", [True, False], ids=["stream", "whole"])
def test_a_client_that_goes_away_frees_its_place(served: Server, oracle: Any, streaming: bool) -> None:
    if streaming:
        for name, _ in events(served, LONG):
            if name == "output":
                break
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(served.url + "/predictions", json={"input": LONG}, timeout=0.3)
    wait_idle(served)
    response = post(served, {"prompt": "hay", **GREEDY})
    assert output(response) == oracle(("user", "hay"))


def test_cancelling_what_is_not_there_is_404(served: Server) -> None:
    assert httpx.post(f"{served.url}/predictions/nothing/cancel").status_code == 404
