"""A hub of models on this machine, as far as the hub's client asks one: what is gated there takes a token."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.ThreadingHTTPServer):
    """Has one gated model, `owner/gated`; `refused` counts requests without its token."""

    def __init__(self, folder: Path, token: str) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.folder, self.token, self.refused, self.served = folder, token, 0, 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self.server.refused += 1
            self._send(401, b'{"error": "Access to model owner/gated is restricted"}', {"X-Error-Code": "GatedRepo"})
        elif self.path.startswith("/api/models/owner/gated/tree/"):
            files = [(path.name, path.stat().st_size) for path in sorted(self.server.folder.iterdir())]
            tree = [{"type": "file", "oid": COMMIT, "path": name, "size": size} for name, size in files]
            self._send(200, json.dumps(tree).encode())
        elif self.path.startswith("/api/models/owner/gated"):
            names = [{"rfilename": path.name} for path in sorted(self.server.folder.iterdir())]
            self._send(200, json.dumps({"id": "owner/gated", "sha": COMMIT, "siblings": names}).encode())
        else:
            content = (self.server.folder / self.path.rpartition("/")[2]).read_bytes()
            self.server.served += 1
            self._send(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def gated_hub(folder: Path, token: str) -> Iterator[Hub]:
    """A hub whose `owner/gated` is the base in `folder`."""
    with Hub(folder, token) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()
