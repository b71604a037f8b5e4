"""Strangers' URLs: only public addresses, only https, and never more bytes or seconds than allowed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from alpaca.errors import DownloadRefused
from alpaca.serving.download import ALLOWED_HOSTS, Limits, download, is_public, shown

BODY = b"adapter" * 1000


class Handler(BaseHTTPRequestHandler):
    """A host that behaves badly in every way its paths name."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        name = self.path.strip("/").split("?")[0]
        redirects = {
            "loop": "/loop",
            "ok-by-redirect": "/ok",
            "to-metadata": "http://169.254.169.254/latest",
            "to-https-private": "https://10.0.0.1/x",
            "to-localhost": f"http://localhost:{port}/ok",
            "to-file": "file:///etc/passwd",
        }
        if name in redirects:
            self.send_response(302)
            self.send_header("Location", redirects[name])
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif name == "ok":
            self._send(BODY, len(BODY))
        elif name == "short":
            self._send(BODY, len(BODY) + 10)
        elif name == "claims-much":
            self._send(b"", 1 << 40)
        elif name in ("endless", "drip"):
            self._forever(b"x" * 100_000 if name == "endless" else b"x", 0.0 if name == "endless" else 0.05)
        elif name == "silent":
            time.sleep(3)
        else:
            self.send_error(404)

    def _send(self, body: bytes, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def _forever(self, piece: bytes, pause: float) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            while True:
                self.wfile.write(piece)
                time.sleep(pause)
        except OSError:
            pass

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def allowed(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOWED_HOSTS, f"models.example, 127.0.0.1:{port}")


@pytest.mark.parametrize("path", ["ok", "ok-by-redirect", "ok?signature=secret"])
def test_an_allowed_host_is_read(port: int, path: str, tmp_path: Path) -> None:
    download(f"http://127.0.0.1:{port}/{path}", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing", "404"),
        ("loop", "more than 5 redirects"),
        ("to-metadata", "only https"),
        ("to-https-private", "10.0.0.1, which is not in the public internet"),
        ("to-localhost", "only https"),
        ("to-file", "no https"),
        ("short", "ended after 7,000 of 7,010 bytes"),
        ("claims-much", "at most 1,000,000"),
        ("endless", "over 1,000,000 bytes"),
        ("drip", "not done after 0.5 s"),
        ("silent", "not done after 0.5 s"),
    ],
)
def test_a_bad_answer_is_refused(port: int, path: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadRefused, match="E4005") as caught:
        download(f"http://127.0.0.1:{port}/{path}", tmp_path / "file", Limits(max_bytes=1_000_000, seconds=0.5))
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.com/a.zip", "only https"),
        ("ftp://example.com/a.zip", "no https"),
        ("https://", "no https"),
        ("https://user:secret@example.com/a.zip", "user name or password"),
        ("https://127.0.0.1/a.zip", "not in the public internet"),
        ("https://localhost/a.zip", "not in the public internet"),
        ("https://[::1]/a.zip", "not in the public internet"),
        ("https://169.254.169.254/latest/meta-data", "not in the public internet"),
        ("https://0x7f000001/a.zip", "not in the public internet"),
        ("https://example.com:99999/a.zip", "no valid port"),
        ("https://no-such-host.invalid/a.zip", "can't be fetched"),
    ],
)
def test_a_url_that_leads_elsewhere_is_refused(url: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadRefused) as caught:
        download(url, tmp_path / "file", Limits(seconds=20))
    assert reason in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    ["10.1.2.3", "172.16.0.1", "192.168.1.1", "127.0.0.1", "0.0.0.0", "169.254.169.254", "100.64.0.1", "224.0.0.1",
     "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1",
     "2001:0:4136:e378:8000:63bf:3fff:fdd2", "ff02::1"],
)  # fmt: skip
def test_addresses_inside_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "151.101.0.223", "2606:4700:4700::1111", "::ffff:1.1.1.1"])
def test_addresses_outside_are_public(address: str) -> None:
    assert is_public(address)


def test_a_signature_is_not_shown() -> None:
    assert shown("https://u:p@host/a.zip?signature=secret#x") == "https://host/a.zip"
