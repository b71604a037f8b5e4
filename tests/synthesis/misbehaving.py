"""A server with OpenAI's chat route that does as it is told: it answers, refuses, breaks off, or drips."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Asked = dict[str, Any]
Speaker = Callable[[Asked], str]


class Misbehaving(ThreadingHTTPServer):
    """`speaker` makes the answer to a request; each of `faults` is played once first, in their order."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, speaker: Speaker, *faults: str, seconds: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.speaker, self.faults, self.seconds = speaker, list(faults), seconds
        self.lock = threading.Lock()
        self.asked: list[Asked] = []
        self.answered: list[str] = []
        self.at_once = self.most_at_once = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no fault."""


@contextmanager
def misbehaving(speaker: Speaker, *faults: str, seconds: float = 0.0) -> Iterator[Misbehaving]:
    server = Misbehaving(speaker, *faults, seconds=seconds)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def last_text(asked: Asked) -> str:
    """What the request ends with."""
    return str(asked["messages"][-1]["content"])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Misbehaving

    def log_message(self, *words: Any) -> None: ...

    def do_GET(self) -> None:
        self._send(200, {"object": "list", "data": [{"id": "one", "object": "model", "created": 0, "owned_by": "x"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server = self.server
        with server.lock:
            server.asked.append(asked)
            fault = server.faults.pop(0) if server.faults else ""
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            time.sleep(server.seconds)
            getattr(self, f"_{fault}")(asked) if fault else self._good(asked)
        finally:
            with server.lock:
                server.at_once -= 1

    def _good(self, asked: Asked) -> None:
        with self.server.lock:
            self.server.answered.append(json.dumps(asked, sort_keys=True))
        self._send(200, self._answer(asked))

    def _answer(self, asked: Asked, finish: str = "stop") -> dict[str, Any]:
        text = self.server.speaker(asked)
        return {
            "id": "x", "object": "chat.completion", "created": 0, "model": asked["model"],
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150},
        }  # fmt: skip

    def _cut_off(self, asked: Asked) -> None:
        """The model ran into its limit."""
        self._send(200, self._answer(asked, "length"))

    def _busy(self, asked: Asked) -> None:
        self._send(429, _error("too many requests"))

    def _busy_for_a_moment(self, asked: Asked) -> None:
        self._send(429, _error("too many requests"), {"Retry-After": "0.2"})

    def _busy_until(self, asked: Asked) -> None:
        when = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 1))
        self._send(503, _error("down for a second"), {"Retry-After": when})

    def _broken(self, asked: Asked) -> None:
        self._send(500, _error("a bug"))

    def _out_of_money(self, asked: Asked) -> None:
        self._send(429, _error("you exceeded your quota", code="insufficient_quota"))

    def _forbidden(self, asked: Asked) -> None:
        self._send(401, _error("wrong key"))

    def _no_such_model(self, asked: Asked) -> None:
        self._send(404, _error("no such model"))

    def _refused(self, asked: Asked) -> None:
        self._send(400, _error("this prompt is against our policy"))

    def _newer_limit(self, asked: Asked) -> None:
        self._send(400, _error("'max_tokens' is not supported: use 'max_completion_tokens' instead", "max_tokens"))

    def _own_temperature(self, asked: Asked) -> None:
        self._send(400, _error("'temperature' does not support 0.5 with this model", "temperature"))

    def _hangs_up(self, asked: Asked) -> None:
        self.close_connection = True
        self.connection.close()

    def _half(self, asked: Asked) -> None:
        """A body that ends before its Content-Length."""
        body = json.dumps(self._answer(asked)).encode()
        self._head(200, {"Content-Length": str(len(body))})
        self.wfile.write(body[: len(body) // 2])
        self.close_connection = True

    def _half_a_stream(self, asked: Asked) -> None:
        """A body in chunks, of which the last never comes."""
        body = json.dumps(self._answer(asked)).encode()[:60]
        self._head(200, {"Transfer-Encoding": "chunked"})
        self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body))
        self.close_connection = True

    def _no_json(self, asked: Asked) -> None:
        self._send_bytes(200, b'{"choices": [{"message"', "application/json")

    def _html(self, asked: Asked) -> None:
        self._send_bytes(200, b"<html>Bad gateway</html>", "text/html")

    def _other_json(self, asked: Asked) -> None:
        self._send(200, {"result": "hello", "choices": None})

    def _odd_choices(self, asked: Asked) -> None:
        self._send(200, {"choices": [{"message": {"role": "assistant", "content": {"text": 5}}}]})

    def _drips(self, asked: Asked) -> None:
        """Each byte comes before a reader's patience between two bytes ends, and all of it would take a minute."""
        body = json.dumps(self._answer(asked)).encode()
        self._head(200, {"Content-Length": str(len(body))})
        for byte in body:
            self.wfile.write(bytes([byte]))
            time.sleep(0.2)

    def _send(self, status: int, answer: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self._send_bytes(status, json.dumps(answer).encode(), "application/json", headers)

    def _send_bytes(self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self._head(status, {"Content-Length": str(len(body)), **(headers or {})}, kind)
        self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str], kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _error(message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "x", "param": param, "code": code}}
