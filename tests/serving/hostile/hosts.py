"""A host that behaves badly in every way its paths name, and URLs that lead where they should not."""

from __future__ import annotations

import gzip
import select
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BODY = b"adapter" * 1000


class Host(ThreadingHTTPServer):
    """Serves `files` at their names, counts requests, and answers badly elsewhere.

    A name that begins with "held" comes half, and the rest of it once it is `let_go`.
    """

    daemon_threads = True
    files: dict[str, bytes]
    requests: Counter[str]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.holding = threading.Semaphore(0)  # one for each that is held
        self.left = threading.Semaphore(0)  # one for each whose other end went away
        self.let_go = threading.Event()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}/{path}"


@contextmanager
def running_host(**files: bytes) -> Iterator[Host]:
    with Host() as host:
        host.files, host.requests = {"ok": BODY, **files}, Counter()
        thread = threading.Thread(target=host.serve_forever)
        thread.start()
        try:
            yield host
        finally:
            host.let_go.set()
            host.shutdown()
            thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Host

    def do_GET(self) -> None:
        name = self.path.strip("/").split("?")[0]
        self.server.requests[name] += 1
        redirects = {
            "loop": "/loop",
            "ok-by-redirect": "/ok",
            "to-nowhere": "",
            "to-rubbish": "http://[::1",
            "to-metadata": "http://169.254.169.254/latest",
            "to-https-private": "https://10.0.0.1/x",
            "to-localhost": f"http://localhost:{self.server.port}/ok",
            "to-file": "file:///etc/passwd",
            "to-data": "data:,x",
        }
        if name.startswith("held"):
            self._hold(self.server.files.get(name, BODY))
        elif name in redirects:
            self._answer(302, b"", Location=redirects[name])
        elif name in self.server.files:
            self._answer(200, self.server.files[name])
        elif name == "short":
            self._answer(200, BODY, length=len(BODY) + 10)
        elif name == "long":
            self._answer(200, BODY, length=len(BODY) - 10)
        elif name == "claims-much":
            self._answer(200, b"", length=1 << 40)
        elif name == "packed":
            self._answer(200, gzip.compress(BODY), **{"Content-Encoding": "gzip"})
        elif name == "adapter.tar.gz":
            self._answer(200, b"\x1f\x8b as it is", **{"Content-Encoding": "x-gzip"})
        elif name == "chunked":
            self._answer(200, b"7fffffffffffffff\r\nadapter", length=None, **{"Transfer-Encoding": "chunked"})
        elif name == "headers":
            self._answer(200, BODY, **{f"X-{n}": "x" * 60_000 for n in range(200)})
        elif name == "drips-headers":
            self._forever(b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.05)
        elif name == "drips":
            self._forever(b"HTTP/1.1 200 OK\r\n\r\n", b"x", 0.05)
        elif name == "endless":
            self._forever(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 100_000, 0.0)
        elif name == "continues":
            self._forever(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.0)
        elif name == "silent":
            time.sleep(3)
        elif name == "rubbish":
            self.wfile.write(b"\x1b[2J" * 1000 + b"\r\n")
            self.close_connection = True
        elif name == "rude":
            self.send_response(500, "x" * 5000 + "\x1b[2J")
            self.end_headers()
            self.close_connection = True
        else:
            self.send_error(404)

    def _answer(self, status: int, body: bytes, *, length: int | None = -1, **fields: str) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length == -1 else length))
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def _hold(self, body: bytes) -> None:
        self.close_connection = True
        half = len(body) // 2
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:half])
        self.server.holding.release()
        while not self.server.let_go.is_set():
            if select.select([self.connection], [], [], 0.01)[0]:  # it has nothing more to ask
                self.server.left.release()
                return
        self.wfile.write(body[half:])

    def _forever(self, first: bytes, piece: bytes, pause: float) -> None:
        self.close_connection = True
        try:
            self.wfile.write(first)
            while True:
                self.wfile.write(piece)
                time.sleep(pause)
        except OSError:
            pass

    def handle(self) -> None:
        with suppress(OSError):  # the other end went away, as it should
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        pass


# path on the host, what is said, code
ANSWERS = [
    ("missing", "404", "E4005"),
    ("loop", "more than 5 redirects", "E4005"),
    ("to-nowhere", "more than 5 redirects", "E4005"),
    ("to-rubbish", "", "E4005"),
    ("to-metadata", "only https", "E4005"),
    ("to-https-private", "10.0.0.1 is not in the public internet", "E4005"),
    ("to-localhost", "only https", "E4005"),
    ("to-file", "no https", "E4005"),
    ("to-data", "no https", "E4005"),
    ("short", "ended after 7,000 of 7,010 bytes", "E4005"),
    ("long", "neither a zip nor a tar", "E4004"),
    ("claims-much", "at most 1,000,000", "E4005"),
    ("endless", "over 1,000,000 bytes", "E4005"),
    ("packed", "comes packed ('gzip')", "E4005"),
    ("chunked", "can't be fetched", "E4005"),
    ("headers", "can't be fetched", "E4005"),
    ("drips", "too slow", "E4005"),
    ("drips-headers", "nothing came for 0.3 s", "E4005"),
    ("continues", "nothing came for 0.3 s", "E4005"),
    ("silent", "nothing came for 0.3 s", "E4005"),
    ("rubbish", "can't be fetched", "E4005"),
    ("rude", "answers 500", "E4005"),
    ("ok", "neither a zip nor a tar", "E4004"),
    ("ok?token=secret", "neither a zip nor a tar", "E4004"),
]
INSIDE = "not in the public internet"
URLS = [
    ("http://example.com/a.zip", "only https", "E4005"),
    ("ftp://example.com/a.zip", "no https", "E4005"),
    ("s3://bucket/a.zip", "no https", "E4005"),
    ("file:///etc/passwd", "file: URL", "E4005"),
    ("FILE:/etc/passwd", "file: URL", "E4005"),
    ("data:application/zip;base64,UEsFBg==", "data: URL", "E4005"),
    ("https://", "no https", "E4005"),
    ("https:///etc/passwd", "no https", "E4005"),
    ("https://[::1", "", "E4005"),
    ("https://user:secret@example.com/a.zip", "user name or password", "E4005"),
    ("https://user:secret@[::1", "", "E4005"),
    ("https://127.0.0.1/a.zip", INSIDE, "E4005"),
    ("https://localhost/a.zip", INSIDE, "E4005"),
    ("https://LOCALHOST./a.zip", "", "E4005"),
    ("https://[::1]/a.zip", INSIDE, "E4005"),
    ("https://[::ffff:127.0.0.1]/a.zip", INSIDE, "E4005"),
    ("https://[::ffff:a9fe:a9fe]/latest/meta-data", INSIDE, "E4005"),
    ("https://169.254.169.254/latest/meta-data", INSIDE, "E4005"),
    ("https://2130706433/a.zip", INSIDE, "E4005"),
    ("https://0x7f000001/a.zip", INSIDE, "E4005"),
    ("https://0177.0.0.1/a.zip", INSIDE, "E4005"),
    ("https://127.1/a.zip", INSIDE, "E4005"),
    ("https://0/a.zip", INSIDE, "E4005"),
    ("https://example.com:99999/a.zip", "no valid port", "E4005"),
    ("https://example.com:0/a.zip", "no valid port", "E4005"),
    ("https://example.com:x/a.zip", "no valid port", "E4005"),
    ("https://" + "a" * 70 + ".com/a.zip", "", "E4005"),
    ("https://exa mple.com/a.zip", "", "E4005"),
    ("https://example.com/\x00.zip", "holds a character", "E4001"),
    ("https://example.com/a\r\nHost: evil", "holds a character", "E4001"),
    ("https://example.com/" + "a" * 2048, "at most 2,048", "E4001"),
]
