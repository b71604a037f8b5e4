"""Servers that answer with what Cog's never does: a client is told the truth, and the gateway stands."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.gateway.running import RunningGateway, error_of, text_of

pytestmark = pytest.mark.server
INPUTS = {"prompt": {"type": "string"}, "max_tokens": {"type": "integer"}}
SCHEMA = {
    "components": {"schemas": {"Input": {"properties": INPUTS}}},
    "paths": {"/predictions": {"post": {"x-cog-streaming": True}}},
}


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(name: str, data: Any) -> bytes:
    content = data if isinstance(data, bytes) else json.dumps(data).encode()
    return chunk(b"event: %s\ndata: %s\n\n" % (name.encode(), content))


def completed(**fields: Any) -> bytes:
    return event("completed", {"status": "succeeded", "output": [], "metrics": {}, **fields}) + chunk(b"")


def answer(status: bytes, content: bytes, *headers: bytes) -> bytes:
    told = b"".join(header + b"\r\n" for header in headers)
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n%s\r\n%s" % (status, len(content), told, content)


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
HAY = event("output", {"chunk": "hay"})
BROKEN = {
    "another protocol": b"\x00\xffSSH-2.0 hello\r\n\r\n",
    "nothing": b"",
    "half the headers": b"HTTP/1.1 200 OK\r\ncontent-ty",
    "500": answer(b"500 No", b"no"),
    "elsewhere": answer(b"307 There", b"", b"Location: http://127.0.0.1:9/"),
    "no event": answer(b"200 OK", b'{"status": "succeeded"}'),
    "no gzip": answer(b"200 OK", b"text", b"Content-Encoding: gzip"),
    "no JSON": STREAM + event("output", b"{not"),
    "no object": STREAM + event("output", [1, 2]),
    "no text": STREAM + event("output", b'{"chunk": "\xff\xfe"}'),
    "a deep object": STREAM + event("output", b"[" * 200_000 + b"]" * 200_000),
    "no chunk": STREAM + b"zzz\r\n",
    "an end in an event": STREAM + b"2d\r\nevent: output\nda",
    "an end too early": STREAM + chunk(b""),
}
ODD = {
    "hay": STREAM + HAY + completed(),
    "5": STREAM + event("output", {"chunk": 5}) + completed(),
    "": STREAM + event("output", {"chunk": None}) + completed(),
    "a?b": STREAM + event("output", b'{"chunk": "a\\ud800b"}') + completed(),
    "lines": STREAM + chunk(b": told\r\nid: 5\r\nevent: output\r\ndata: {\"chunk\": \"lines\"}\r\n\r\n") + completed(),
    "metrics": STREAM + event("output", {"chunk": "metrics"}) + completed(
        metrics={"tokens_per_second": "fast", "seed": [1], "input_token_count": -5, "output_token_count": 2}),
    "numbers": STREAM + event("output", {"chunk": "numbers"}) + completed(
        metrics={"tokens_per_second": float("inf"), "batch_size": float("nan"), "queue_time": 0.5}),
    "a list": STREAM + event("output", {"chunk": "a list"}) + completed(metrics=[1]),
    "until the end": b"HTTP/1.0 200 OK\r\n\r\nevent: output\ndata: {\"chunk\": \"until the end\"}\n\n"
                     b"event: completed\ndata: {\"status\": \"succeeded\"}\n\n",
}  # fmt: skip


class Scripted(socketserver.StreamRequestHandler):
    """Answers a prediction with the bytes that its prompt names, and closes a moment after without a word."""

    def handle(self) -> None:
        while line := self.rfile.readline():
            length = 0
            while (header := self.rfile.readline().lower()) not in (b"\r\n", b""):
                if header.startswith(b"content-length:"):
                    length = int(header.partition(b":")[2])
            body = self.rfile.read(length)
            if b"/predictions" in line:
                self.wfile.write({**BROKEN, **ODD}[json.loads(body)["input"]["prompt"]])
                return
            told = SCHEMA if b"openapi" in line else {"status": "READY"}
            self.wfile.write(answer(b"200 OK", json.dumps(told).encode()))


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


@pytest.fixture(scope="module")
def gateway() -> Iterator[RunningGateway]:
    with Server(("127.0.0.1", 0), Scripted) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        with RunningGateway("--name", "odd", "--places", "4", upstreams=[url]) as running:
            yield running.wait()
            log = running.log()
            assert "Traceback" not in log and "fault" not in log, log
        server.shutdown()


@pytest.mark.parametrize("before", [b"", STREAM + HAY], ids=["at once", "after a text"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_answer_is_told_as_an_error(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch, name: str, stream: bool, before: bytes
) -> None:
    monkeypatch.setitem(BROKEN, name, before + BROKEN[name].removeprefix(STREAM if before else b""))
    said = gateway.chat(name, model="odd", stream=stream)
    if said.status_code == 200:  # a text was on its way before
        assert stream and before and "data: [DONE]" not in said.text
        assert json.loads(said.text.rstrip().rpartition("data: ")[2])["error"]["message"]
    else:
        assert said.status_code == 503 or (before and said.status_code == 502)
        error_of(said)


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_but_an_answer_arrives(gateway: RunningGateway, name: str) -> None:
    whole = gateway.chat(name, model="odd")
    assert text_of(whole) == name and whole.json()["usage"] is None
    assert set(whole.json()["metrics"]) <= {"queue_time"}
    lines = [line for line in gateway.chat(name, model="odd", stream=True).text.split("\n") if line]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == name
    assert lines[-1] == "data: [DONE]"


def test_every_place_is_free_afterwards(gateway: RunningGateway) -> None:
    lines = httpx.get(f"{gateway.url}/metrics").text.splitlines()
    assert [line.rpartition(" ")[2] for line in lines if line.startswith("alpaca_upstream_taken")] == ["0.0"]
