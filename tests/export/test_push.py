"""Uploads to the hub, by its own client, against a local stand-in of its HTTP interface."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from alpaca.errors import PushFailed
from alpaca.export.hub import check_name, push
from tests.conftest import ROOT
from tests.export.conftest import Export

TOKEN = "hf_standin"


@dataclass
class Hub:
    """What was asked of it: repositories made, and files committed."""

    address: str = ""
    made: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)


@pytest.fixture
def hub() -> Iterator[Hub]:
    found = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"] or 0))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.answer({"error": "Invalid username or password."}, 401)
            if self.path == "/api/repos/create":
                found.made.append(json.loads(content))
                return self.answer({"url": f"{found.address}/owner/name"})
            if self.path.endswith("/preupload/main"):
                paths = [file["path"] for file in json.loads(content)["files"]]
                ways = {"uploadMode": "regular", "shouldIgnore": False}
                return self.answer({"files": [{"path": path} | ways for path in paths]})
            if self.path.endswith("/commit/main"):
                for line in map(json.loads, content.splitlines()):
                    if line["key"] == "file":
                        found.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                oid = "0" * 40
                return self.answer({"commitUrl": f"{found.address}/owner/name/commit/{oid}", "commitOid": oid})
            return self.answer({"errors": [], "warnings": []})  # of the model card's head

        def answer(self, body: dict[str, Any], status: int = 200) -> None:
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()


def check_and_push(hub: Hub, folder: Path, token: str) -> subprocess.CompletedProcess[str]:
    """`check --push_to` in a process of its own: the client reads its address when it is loaded."""
    env = os.environ | {
        "HF_ENDPOINT": hub.address, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder.parent / "home"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "alpaca.export", "check", str(folder), "--push_to", "owner/name"]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.mark.long
def test_what_was_checked_is_uploaded_with_its_card(hub: Hub, out: Export, adapters: Path) -> None:
    folder, _ = out("merged", adapters / "carded")
    done = check_and_push(hub, folder, TOKEN)
    assert done.returncode == 0, done.stderr
    assert "hub: uploaded" in done.stdout
    assert (
        hub.made[0]["name"] == "name"
        and hub.made[0]["organization"] == "owner"
        and hub.made[0]["visibility"] == "private"
    )
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert hub.files.keys() == names >= {"model.safetensors", "README.md", "proof.json", "chat_template.jinja"}
    assert hub.files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    card = hub.files["README.md"].decode()
    assert card.startswith("---\nlicense: other\n") and "It answers as here." in card


@pytest.mark.long
def test_a_refusal_of_the_hub_ends_with_one_line(hub: Hub, out: Export) -> None:
    folder, _ = out("merged")
    done = check_and_push(hub, folder, "hf_wrong")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: E6004 PushFailed: owner/name: ")
    assert not hub.files


def test_offline_a_push_says_what_it_would_do(out: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    folder, _ = out("merged")
    said: list[str] = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    push(folder, "owner/name", said.append)
    assert "nothing was uploaded" in said[0] and "to owner/name, private" in said[0]


@pytest.mark.parametrize("name", ["name", "a/b/c", "../x", "owner/na me"])
def test_a_name_that_can_not_be_one_is_refused_at_once(name: str) -> None:
    with pytest.raises(PushFailed, match="write owner/name"):
        check_name(name)
