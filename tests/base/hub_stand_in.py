"""The hub's interface, as much of it as fetching a model asks for, over local HTTP: the real client talks to it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """One repository, served from `folder`; `token` is what a gated one asks for, and `served` what was fetched."""

    hub_id: str
    folder: Path
    token: str = ""
    address: str = ""
    served: list[str] = field(default_factory=list)

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


@contextmanager
def stand_in(hub_id: str, folder: Path, token: str = "") -> Iterator[Hub]:
    """Serve the repository `hub_id` until the end of the block."""
    hub = Hub(hub_id, folder, token)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, *args: object) -> None:
            pass

        def _answer(self, *, body: bool) -> None:
            path = urlsplit(self.path).path
            api = f"/api/models/{hub.hub_id}"
            if path in (api, f"{api}/revision/main"):
                return self._send(json.dumps({"id": hub.hub_id, "sha": COMMIT, "siblings": []}).encode(), body)
            if path == f"{api}/tree/{COMMIT}":
                names = [
                    {"type": "file", "path": p.relative_to(hub.folder).as_posix(), "size": p.stat().st_size, "oid": "0"}
                    for p in hub.files()
                ]
                return self._send(json.dumps(names).encode(), body)
            wanted = hub.folder / path.removeprefix(f"/{hub.hub_id}/resolve/{COMMIT}/")
            if not path.startswith(f"/{hub.hub_id}/resolve/") or not wanted.is_file():
                return self._refuse(404, "RepoNotFound")
            if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self._refuse(403 if self.headers.get("Authorization") else 401, "GatedRepo")
            if body:
                hub.served.append(wanted.name)
            return self._send(wanted.read_bytes(), body)

        def _send(self, content: bytes, body: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.end_headers()
            if body:
                self.wfile.write(content)

        def _refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", f"said by the stand-in: {code}")
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
