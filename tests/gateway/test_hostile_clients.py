"""Clients that send too much, too slowly or to the wrong place, and others that read nothing."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from alpaca.cogserver.server import free_port
from alpaca.gateway import endpoint, guard
from alpaca.gateway.app import create_app
from alpaca.gateway.settings import Settings
from tests.gateway.running import CogProcess, RunningGateway, error_of, text_of

pytestmark = pytest.mark.server
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def echo(other_project: Path) -> Iterator[CogProcess]:
    with CogProcess(other_project) as server:
        yield server


@pytest.fixture(scope="module")
def guarded(echo: CogProcess) -> Iterator[RunningGateway]:
    with RunningGateway("--name", "echo", "--body_bytes", "65536", upstreams=[echo.url]) as gateway:
        yield gateway.wait()


def talk(port: int, *pieces: bytes, wait: float = 5.0) -> bytes:
    """What comes back on one connection until the other side closes it."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = b""
        try:
            while data := connection.recv(65536):
                answer += data
        except (TimeoutError, ConnectionResetError):
            pass
        return answer


@pytest.mark.parametrize("told", [True, False], ids=["announced", "in chunks"])
def test_a_body_that_is_too_large_is_refused_before_it_is_read(guarded: RunningGateway, told: bool) -> None:
    if told:
        answer = talk(guarded.port, CHAT + b"Content-Length: 99999999999\r\n\r\n", b"x" * 1000)
    else:
        chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
        answer = talk(guarded.port, CHAT + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 400)
    assert answer == b"" or b" 413 " in answer.split(b"\r\n")[0]  # a reset may overtake the answer
    assert not told or b"connection: close" in answer.lower()
    assert text_of(guarded.chat(model="echo")) == "hay"


def test_headers_have_a_limit(guarded: RunningGateway) -> None:
    many = b"".join(b"X-%d: %s\r\n" % (number, b"y" * 100) for number in range(10_000))
    for flood in (CHAT + many, CHAT + b"X: " + b"y" * 1_000_000, b"GET /" + b"a" * 1_000_000):
        answer = talk(guarded.port, flood)
        assert answer == b"" or b" 400 " in answer.split(b"\r\n")[0]
    assert text_of(guarded.chat(model="echo")) == "hay"


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/nothing", {}, 404),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", {}, 404),
        ("GET", "/report/..%2f..", {}, 404),
        ("GET", "/report/echo", {}, 404),
        ("GET", "/predictions", {}, 404),
        ("POST", "/predictions", {"Content-Type": "application/json"}, 404),
        ("POST", "/shutdown", {"Content-Type": "application/json"}, 404),
        ("PUT", "/predictions/x", {"Content-Type": "application/json"}, 404),
        ("DELETE", "/v1/models/echo", {}, 405),
        ("GET", "/v1/chat/completions", {}, 405),
        ("POST", "/v1/chat/completions", {"Content-Type": "text/plain"}, 415),
        ("POST", "/v1/chat/completions", {}, 415),
        ("GET", "/v1/models", {"Host": "evil.example"}, 421),
        ("GET", "/", {"Host": "evil.example:80"}, 421),
    ],
)
def test_what_leads_nowhere_is_refused_in_openais_form(
    guarded: RunningGateway, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    answer = httpx.request(method, guarded.url + path, headers=headers)
    assert answer.status_code == status
    error_of(answer)


def test_a_page_elsewhere_gets_nothing_unless_its_origin_is_named(guarded: RunningGateway, echo: CogProcess) -> None:
    asks = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type,authorization"}  # fmt: skip
    path = "/v1/chat/completions"
    assert "access-control-allow-origin" not in httpx.options(guarded.url + path, headers=asks).headers
    with RunningGateway("--cors", "https://page.example", upstreams=[echo.url]) as opened:
        opened.wait()
        allowed = httpx.options(opened.url + path, headers=asks)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://page.example"
        other = httpx.options(opened.url + path, headers={**asks, "Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


def test_a_wish_for_another_protocol_is_passed_over(guarded: RunningGateway) -> None:
    """As Java's client has it in its first request."""
    body = b'{"model": "echo", "messages": [{"role": "user", "content": "%s"}]}'
    length = b"Content-Length: %d\r\n\r\n" % len(body % b"hay")
    wish = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"
    last = CHAT + b"Connection: close\r\n" + length + body % b"ivy"
    answer = talk(guarded.port, CHAT + wish + length, body % b"hay", last)
    assert answer.count(b"HTTP/1.1 200") == 2 and b'"hay"' in answer and b'"ivy"' in answer


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT example.com:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        CHAT + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}    ",
        CHAT + b"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=["TLS", "HTTP/2", "a proxy's", "two lengths", "two kinds of length", "no ASCII"],
)
def test_what_is_no_request_is_refused_at_once(guarded: RunningGateway, sent: bytes) -> None:
    assert talk(guarded.port, sent).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 60_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'{"model": "\xff\xfe"}',
        b'{"seed": %s}' % (b"9" * 9000),
    ],
    ids=["a deep list", "a deep object", "no text", "a long number"],
)
def test_a_body_that_no_one_can_read_is_refused(guarded: RunningGateway, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{guarded.url}/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == 400 and error_of(answer)["message"].startswith("the body is not JSON")


def test_ten_thousand_messages_are_one_conversation(echo: CogProcess) -> None:
    said = [{"role": "user", "content": "hay"}] * 10_000
    with RunningGateway("--name", "echo", upstreams=[echo.url]) as gateway:
        gateway.wait()
        answer = httpx.post(
            f"{gateway.url}/v1/chat/completions", json={"model": "echo", "messages": said, "max_tokens": 2}, timeout=60
        )
        assert text_of(answer) == "User: hay\n\nUser:"


def test_running_answers_are_completed_at_sigterm(echo: CogProcess) -> None:
    with RunningGateway("--name", "echo", upstreams=[echo.url]) as gateway:
        gateway.wait()
        body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "hay sleep:1 grass"}]}
        with httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json=body, timeout=30) as response:
            lines = response.iter_lines()
            next(lines)
            gateway.process.terminate()
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]" and "grass" in "".join(rest)
        assert gateway.process.wait(30) in (0, -signal.SIGTERM)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{gateway.url}/health")


@pytest.fixture(scope="module")
def hasty(echo: CogProcess) -> Iterator[int]:
    """The port of a gateway in this process that waits a second where others wait longer."""
    patch = pytest.MonkeyPatch()
    patch.setattr(guard, "HEADER_SECONDS", 1.0)
    patch.setattr(endpoint, "BODY_SECONDS", 1.0)
    patch.setattr(guard, "SEND_SECONDS", 1.0)
    port = free_port()
    config = uvicorn.Config(
        create_app(Settings((echo.url,), name="echo")), port=port, http=guard.GuardedProtocol, ws="none",
        loop="uvloop", log_config=None,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 60
    while True:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                break
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield port
    server.should_exit = True
    thread.join()
    patch.undo()


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /health HT", CHAT, CHAT + b"X: " + b"y" * 100],
    ids=["nothing", "half a line", "half the headers", "half a header"],
)
def test_a_request_that_does_not_come_to_its_end_is_cut(hasty: int, sent: bytes) -> None:
    started = time.monotonic()
    assert talk(hasty, sent, wait=20) == b""
    assert time.monotonic() - started < 15


def test_headers_that_drip_are_cut_too(hasty: int) -> None:
    connection = socket.create_connection(("127.0.0.1", hasty), timeout=10)
    with connection, pytest.raises((BrokenPipeError, ConnectionResetError)):
        for _ in range(100):
            connection.sendall(b"G")
            time.sleep(0.2)


def test_a_body_that_does_not_come_to_its_end_is_told_so(hasty: int) -> None:
    answer = talk(hasty, CHAT + b"Content-Length: 100\r\n\r\n{", wait=20)
    assert b" 408 " in answer.split(b"\r\n")[0] and b"the body was not whole" in answer


def test_a_connection_that_is_kept_is_not_cut_in_the_middle_of_an_answer(hasty: int) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{hasty}", timeout=30) as http:
        for _ in range(2):
            body = {"model": "echo", "messages": [{"role": "user", "content": "sleep:1.5 hay"}]}
            assert text_of(http.post("/v1/chat/completions", json=body)) == " hay"


def test_a_client_that_reads_nothing_loses_its_place(hasty: int) -> None:
    said = [{"role": "user", "content": " ".join(["many:9000000"] * 3)}]
    body = json.dumps({"model": "echo", "stream": True, "messages": said})
    with socket.create_connection(("127.0.0.1", hasty), timeout=30) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(CHAT + f"Content-Length: {len(body)}\r\n\r\n{body}".encode())
        answer = httpx.post(
            f"http://127.0.0.1:{hasty}/v1/chat/completions", timeout=60,
            json={"model": "echo", "messages": [{"role": "user", "content": "hay"}]},
        )  # fmt: skip
        assert text_of(answer) == "hay", "the one place is free again"


def test_nothing_that_clients_did_is_a_fault_of_the_gateway(guarded: RunningGateway) -> None:
    assert "Traceback" not in guarded.log() and "fault" not in guarded.log()
