"""64 clients of eight addresses through the queue on eight places, with cancellations: nothing lost, nothing wrong.

GATEWAY_SOAK_SECONDS says for how long; `make soak-gateway` takes three minutes.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from typing import Any

import httpx
import psutil
import pytest

from alpaca.cogserver.server import Server
from tests.gateway.running import RunningGateway, text_of

pytestmark = [pytest.mark.server, pytest.mark.long]
SECONDS = float(os.environ.get("GATEWAY_SOAK_SECONDS", "8"))
ADDRESSES, EACH = 8, 8
TOKENS = 16
PROMPTS = ["hay", "Tell me about the alpaca.", "你好 🦙", "the herd in the field " * 20]
MODELS = ["a", "b", "a@0.5", "a:0.7+b:0.5"]
GROWTH = 16 << 20  # bytes
Answers = dict[tuple[str, str], str]


class Client(threading.Thread):
    """Asks until the time is over, and notes what was wrong."""

    def __init__(self, gateway: RunningGateway, number: int, until: float, expected: Answers) -> None:
        super().__init__()
        self.gateway, self.until, self.expected = gateway, until, expected
        self.address = f"127.0.0.{1 + number % ADDRESSES}"
        self.dice = random.Random(number)
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run(self) -> None:
        transport = httpx.HTTPTransport(local_address=self.address)
        with httpx.Client(base_url=self.gateway.url, timeout=90, transport=transport) as http:
            while time.monotonic() < self.until:
                act = self.dice.choice([self.whole, self.streamed, self.streamed, self.bad, self.leave])
                try:
                    act(http)
                except Exception as error:  # a thread's exception would be lost
                    self.wrong.append(f"{act.__name__}: {error!r}")

    def body(self) -> tuple[dict[str, Any], str]:
        model, prompt = self.dice.choice(list(self.expected))
        messages = [{"role": "user", "content": prompt}]
        body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": TOKENS}
        return body, self.expected[model, prompt]

    def whole(self, http: httpx.Client) -> None:
        body, answer = self.body()
        response = http.post("/v1/chat/completions", json=body)
        self.done["whole"] += 1
        if response.status_code != 200 or text_of(response) != answer:
            self.wrong.append(f"{body}: {response.status_code} {response.text}")

    def streamed(self, http: httpx.Client) -> None:
        import json

        body, answer = self.body()
        text, last = "", ""
        with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
            for line in response.iter_lines():
                if line.startswith("data: {") and response.status_code == 200:
                    text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
                last = line or last
        self.done["streamed"] += 1
        if text != answer or last != "data: [DONE]":
            self.wrong.append(f"{body}: {response.status_code} {text!r} instead of {answer!r}, {last!r}")

    def bad(self, http: httpx.Client) -> None:
        messages = [{"role": "user", "content": self.dice.choice([" ", "你" * 3000])}]
        response = http.post("/v1/chat/completions", json={"model": "a", "messages": messages})
        self.done["bad"] += 1
        if response.status_code != 400:
            self.wrong.append(f"bad: {response.status_code} {response.text}")

    def leave(self, http: httpx.Client) -> None:
        """In the queue, before the first text, or in the middle."""
        body = {"model": "b", "messages": [{"role": "user", "content": "hay"}], "max_tokens": 900, "min_tokens": 900}
        self.done["left"] += 1
        try:
            with http.stream(
                "POST", "/v1/chat/completions", json={**body, "stream": True}, timeout=self.dice.random() * 0.5
            ) as response:
                next(response.iter_lines())
                if response.status_code != 200:
                    self.wrong.append(f"left: {response.status_code}")
        except httpx.TimeoutException:
            pass


def test_nothing_is_lost_or_wrong_however_many_ask(server: Server, gateway: RunningGateway) -> None:
    expected = {
        (model, prompt): text_of(gateway.chat(prompt, model=model, temperature=0, max_tokens=TOKENS))
        for model in (*MODELS, httpx.get(f"{gateway.url}/v1/models").json()["data"][0]["id"])
        for prompt in PROMPTS
    }
    process = psutil.Process(gateway.process.pid)
    start = time.monotonic()
    clients = [Client(gateway, number, start + SECONDS, expected) for number in range(ADDRESSES * EACH)]
    for client in clients:
        client.start()
    time.sleep(SECONDS / 3)
    early = process.memory_info().rss
    for client in clients:
        client.join()
    done = sum((client.done for client in clients), Counter[str]())
    late = process.memory_info().rss
    by_address: Counter[str] = Counter()
    for client in clients:
        by_address[client.address] += client.done.total()
    print(f"{SECONDS:g} s, {len(clients)} clients: {dict(done)}; by address {sorted(by_address.values())}; "
          f"memory {early / 1e6:.0f} → {late / 1e6:.0f} MB")  # fmt: skip
    assert [fault for client in clients for fault in client.wrong] == []
    assert all(done[act] > 5 for act in ("whole", "streamed", "bad", "left")), done
    assert min(by_address.values()) * 2 > max(by_address.values()), by_address
    assert late < early + GROWTH
    taken = f'alpaca_upstream_taken{{upstream="{server.url}"}}'
    deadline = time.monotonic() + 30
    while gateway.metric(taken) or gateway.metric("alpaca_queue_length"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "fault" not in gateway.log() and "Traceback" not in gateway.log()
