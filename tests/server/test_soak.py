"""Many clients for a while: mixed adapters, bad requests, cancellations and disconnections, on Cog's real server.

SOAK_SECONDS says for how long; `make soak` takes three minutes.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch

from alpaca.base.load import load_model, load_tokenizer
from alpaca.cogserver.server import Server
from alpaca.prompts.encode import encode_prompt
from alpaca.prompts.example import Example
from alpaca.prompts.find import load_template
from tests.server.over_http import Start, events
from tests.serving.peft_adapters import edit_config, make_adapter

pytestmark = pytest.mark.server
SECONDS = float(os.environ.get("SOAK_SECONDS", "40"))
CLIENTS = 32
TOKENS = 24
PROMPTS = ["hay", "Tell me about the alpaca.", "你好 🦙", "the herd in the field " * 20]
GROWTH = 64 << 20  # bytes; what is kept per adapter, shape and prefix is there after the first third
BAD: list[tuple[dict[str, Any], str]] = [
    ({"prompt": " "}, "E1001"),
    ({"prompt": "你" * 3000}, "E1002"),
    ({"prompt": "hay", "adapter": "not-there"}, "E4001"),
    ({"prompt": "hay", "adapter": "../../etc"}, "E4001"),
    ({"prompt": "hay", "adapter": "broken"}, "E4002"),
    ({"prompt": "hay", "adapter": "http://127.0.0.1/a.zip"}, "E4005"),
    ({"prompt": "hay", "prompt_template": "{{ x }}"}, "E2102"),
]
Answers = dict[tuple[str, str], str]


@pytest.fixture(scope="module")
def adapters(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's folder of adapters: a, b, and a broken one."""
    folder = tmp_path_factory.mktemp("adapters")
    make_adapter(tiny_base, folder / "a", seed=1)
    make_adapter(tiny_base, folder / "b", seed=2, r=24, use_rslora=True, target_modules=["q_proj", "down_proj"])
    make_adapter(tiny_base, folder / "broken")
    edit_config(folder / "broken", target_modules=".*(a+)+$")
    return folder


@pytest.fixture(scope="module")
def expected(tiny_base: Path, adapters: Path) -> Answers:
    """What generate() answers, by adapter and prompt."""
    from peft import PeftModel

    tokenizer, answers = load_tokenizer(tiny_base), {}
    template = load_template("auto", tokenizer)
    for name in ("none", "a", "b"):
        model: Any = load_model(tiny_base, "fp32")
        if name != "none":
            model = PeftModel.from_pretrained(model, str(adapters / name)).eval()
        for prompt in PROMPTS:
            ids = torch.tensor([encode_prompt(tokenizer, template, Example.single(prompt))])
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                pad_token_id=3,
                max_new_tokens=TOKENS,
            )
            answers[name, prompt] = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    return answers


class Client(threading.Thread):
    """Asks until the time is over, and notes what was wrong."""

    def __init__(self, server: Server, number: int, until: float, expected: Answers) -> None:
        super().__init__()
        self.server, self.until, self.expected = server, until, expected
        self.random = random.Random(number)
        self.number = number
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run(self) -> None:
        with httpx.Client(timeout=60) as http:
            while time.monotonic() < self.until:
                act = self.random.choice(
                    [self.good, self.good, self.good, self.stream, self.bad, self.cancel, self.leave]
                )
                try:
                    act(http)
                except Exception as error:  # a thread's exception would be lost
                    self.wrong.append(f"{act.__name__}: {error!r}")

    def inputs(self) -> tuple[dict[str, Any], str]:
        name, prompt = self.random.choice(list(self.expected))
        inputs = {"prompt": prompt, "adapter": name, "temperature": 0, "max_tokens": TOKENS}
        return inputs, self.expected[name, prompt]

    def post(self, http: httpx.Client, inputs: dict[str, Any]) -> dict[str, Any] | None:
        """The body, or None where all places are taken, which is an answer too."""
        response = http.post(self.server.url + "/predictions", json={"input": inputs})
        if response.status_code == 409:
            self.done["409"] += 1
            time.sleep(self.random.random() * 0.05)
            return None
        assert response.status_code == 200, response.text
        body: dict[str, Any] = response.json()
        return body

    def good(self, http: httpx.Client) -> None:
        inputs, answer = self.inputs()
        body = self.post(http, inputs)
        if body is not None:
            self.done["good"] += 1
            if body["status"] != "succeeded" or "".join(body["output"] or []) != answer:
                self.wrong.append(f"{inputs}: {body}")

    def stream(self, http: httpx.Client) -> None:
        inputs, answer = self.inputs()
        try:
            seen = list(events(self.server, inputs))
        except AssertionError:  # 409
            self.done["409"] += 1
            return
        self.done["streamed"] += 1
        text = "".join(data["chunk"] for name, data in seen if name == "output")
        if text != answer or seen[-1][1]["status"] != "succeeded":
            self.wrong.append(f"{inputs}: {text!r} instead of {answer!r}")

    def bad(self, http: httpx.Client) -> None:
        inputs, code = self.random.choice(BAD)
        body = self.post(http, inputs)
        if body is not None:
            self.done["bad"] += 1
            if body["status"] != "failed" or code not in (body["error"] or ""):
                self.wrong.append(f"{str(inputs)[:100]}: {body}")

    def cancel(self, http: httpx.Client) -> None:
        name = f"cancel-{self.number}-{self.random.random()}"
        long = {"prompt": "hay", "max_tokens": 900, "min_tokens": 900, "seed": 1, "adapter": "a"}
        asked = False
        try:
            for event, data in events(self.server, long, prediction=name):
                if event == "output" and not asked:
                    asked = True
                    http.post(f"{self.server.url}/predictions/{name}/cancel")
                if event == "completed":
                    self.done["cancelled"] += 1
                    # Whoever cancels late finds the answer whole.
                    whole = data["status"] == "succeeded" and data["metrics"]["output_token_count"] == 900
                    if data["status"] != "canceled" and not whole:
                        self.wrong.append(f"cancelled, but {data['status']}: {data.get('error')}")
        except AssertionError:
            self.done["409"] += 1

    def leave(self, http: httpx.Client) -> None:
        long = {"prompt": "hay", "max_tokens": 900, "min_tokens": 900, "seed": 2, "adapter": "b"}
        try:
            for event, _ in events(self.server, long):
                if event == "output":
                    self.done["left"] += 1
                    break
        except AssertionError:
            self.done["409"] += 1


def memory(server: Server) -> int:
    """Bytes resident in the server and its worker."""
    processes = psutil.Process(server.process.pid)
    return sum(p.memory_info().rss for p in (processes, *processes.children(recursive=True)))


def test_good_requests_are_answered_right_whatever_else_goes_on(
    start_server: Start, tiny_base: Path, adapters: Path, expected: Answers, record_property: Any
) -> None:
    server = start_server(tiny_base, ADAPTER_FOLDERS=str(adapters))
    start = time.monotonic()
    clients = [Client(server, number, start + SECONDS, expected) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    time.sleep(SECONDS / 3)
    early = memory(server)
    for client in clients:
        client.join()
    done = sum((client.done for client in clients), Counter[str]())
    print(f"{SECONDS:g} s, {CLIENTS} clients: {dict(done)}; memory {early / 1e6:.0f} → {memory(server) / 1e6:.0f} MB")
    assert [fault for client in clients for fault in client.wrong] == []
    # They wait for their turn. Whoever goes away keeps a place until Cog has noticed, so a few may meet none.
    assert done["409"] * 100 <= done.total(), done
    assert all(done[kind] > 5 for kind in ("good", "streamed", "bad", "cancelled", "left")), done
    wait_idle(server)
    assert memory(server) < early + GROWTH
    with httpx.Client(timeout=60) as http:
        for (name, prompt), answer in expected.items():
            inputs = {"prompt": prompt, "adapter": name, "temperature": 0, "max_tokens": TOKENS}
            while (body := clients[0].post(http, inputs)) is None:  # the last of them are about to go
                pass
            assert "".join(body["output"] or []) == answer


def wait_idle(server: Server) -> None:
    """Until all of Cog's places are free: cancelled work ends soon after its client has gone."""
    deadline = time.monotonic() + 30
    while True:
        pieces = [events(server, {"prompt": "hay", "max_tokens": 900, "min_tokens": 900, "seed": n}) for n in range(64)]
        try:
            for piece in pieces:
                next(piece)
            return
        except AssertionError:  # 409: not yet
            assert time.monotonic() < deadline
            time.sleep(0.1)
        finally:
            for piece in pieces:
                piece.close()
