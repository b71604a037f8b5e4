"""A base by URL and checksum: fetched once by whoever is first, resumed after any end, never taken half."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from alpaca import progress
from alpaca.base import resumable_download
from alpaca.base.find import resolve_base
from alpaca.base.headers import fingerprint
from alpaca.base.load import load_model, load_tokenizer
from alpaca.errors import BadBase, BadSetting, BaseNotFound, ChecksumMismatch, FetchFailed
from alpaca.training.job import run_job
from alpaca.training.job_inputs import prepare
from tests.conftest import ROOT

MEGABYTE = 1_000_000


def weights(data: bytes) -> bytes:
    """A safetensors file with one tensor."""
    entry = {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}
    header = json.dumps({"w": entry}).encode()
    return len(header).to_bytes(8, "little") + header + data


WEIGHTS = "model.safetensors"
FILES = {"config.json": b"{}", "tokenizer.json": b"{}", WEIGHTS: weights(os.urandom(3 * MEGABYTE))}


def tar_of(files: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


BODY = tar_of(FILES)


class Store(ThreadingHTTPServer):
    """Serves `body` at /tiny.tar with the faults that a test sets, and counts requests and the body's bytes sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = BODY
        self.fields = {"ETag": '"one"'}
        self.ranges = True
        self.sized = True
        self.faults: list[int | str] = []  # by request: a status, "drop" or "hang" at a megabyte, "long"
        self.requests: list[dict[str, str]] = []
        self.sent = 0
        self.go_on = threading.Event()

    def url(self, path: str = "tiny.tar") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"


class Handler(BaseHTTPRequestHandler):
    server: Store

    def do_GET(self) -> None:
        store = self.server
        if self.path.startswith("/moved"):
            return self._head(302, 0, Location=store.url())
        if self.path.startswith("/loop"):
            return self._head(302, 0, Location="/loop")
        if self.path.startswith("/to-file"):
            return self._head(302, 0, Location="file:///etc/passwd")
        store.requests.append(dict(self.headers.items()))
        fault = store.faults.pop(0) if store.faults else ""
        if isinstance(fault, int):
            return self._head(fault, 0)
        begins, total = 0, len(store.body)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if store.ranges else None
        if asked and self.headers.get("If-Range", store.fields.get("ETag")) == store.fields.get("ETag"):
            begins = int(asked[1])
            if begins >= total:
                return self._head(416, 0, **{"Content-Range": f"bytes */{total}"})
            span = {"Content-Range": f"bytes {begins}-{total - 1}/{total}"}
            self._head(206, total - begins, **store.fields, **span)
        else:
            self._head(200, total + (99 if fault == "long" else 0) if store.sized else None, **store.fields)
        ends = min(total, begins + MEGABYTE) if fault in ("drop", "hang") else total
        self.wfile.write(store.body[begins:ends])
        store.sent += ends - begins
        if fault == "hang":
            store.go_on.wait(60)

    def _head(self, status: int, length: int | None, **fields: str) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the other end went away, as it should
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def store() -> Iterator[Store]:
    with Store() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.go_on.set()
            server.shutdown()
            thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALPACA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BASE_MODEL", raising=False)
    monkeypatch.setattr(resumable_download, "PAUSES", (0.01, 0.02, 0.03))
    expect(monkeypatch, BODY)
    return tmp_path / "cache"


def expect(monkeypatch: pytest.MonkeyPatch, body: bytes) -> str:
    sha256 = hashlib.sha256(body).hexdigest()
    monkeypatch.setenv("BASE_SHA256", sha256)
    return sha256


def home(cache: Path, body: bytes = BODY) -> Path:
    return cache / "bases" / hashlib.sha256(body).hexdigest()[:16]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- fetched and kept ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("top", [".", "some-folder"])
def test_a_base_is_fetched_and_loads(
    store: Store, cache: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch, mode: str, top: str
) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as tar:  # type: ignore[call-overload]
        tar.add(tiny_base, top)
    store.body = packed.getvalue()
    sha256 = expect(monkeypatch, store.body)
    monkeypatch.setenv("BASE_SHA256", sha256.upper())
    monkeypatch.setenv("BASE_MODEL", store.url("tiny.tar.gz?signature=secret" if mode == "w:gz" else "tiny.tar"))
    folder = resolve_base()
    assert folder == cache / "bases" / sha256[:16] / "tiny"
    assert fingerprint(folder) == fingerprint(tiny_base)
    assert load_tokenizer(folder).eos_token_id == 2 and load_model(folder, "fp32").config.hidden_size == 64
    assert left(folder.parent) == [".lock", ".sha256", "tiny"]


def test_the_second_start_needs_no_server(store: Store, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = resolve_base(store.url())
    store.shutdown()
    store.server_close()
    assert resolve_base(store.url()) == folder and content(folder) == FILES
    assert resolve_base("https://mirror.invalid/other-name.tar") == folder
    assert len(store.requests) == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"base tiny is in the cache: {folder}"


def test_a_base_that_is_there_is_taken_without_writing_anything(store: Store, cache: Path) -> None:
    folder = resolve_base(store.url())
    (folder.parent / ".lock").unlink()
    resolve_base(store.url())
    assert left(folder.parent) == [".sha256", "tiny"]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("Llama%207b%2f..%2f%20x.TAR.GZ", "x"), ("a/b/llama-7b.tgz", "llama-7b"), ("%2e%2e/", "base"), ("", "base"),
        (".sha256", "sha256"), ("x" * 100 + ".tar", "x" * 64), ("早.tar", "base"), ("v1.5-q.tar?x=/y.tar", "v1.5-q"),
    ],
)  # fmt: skip
def test_the_base_is_named_after_its_archive(store: Store, cache: Path, path: str, name: str) -> None:
    assert resolve_base(store.url(path)) == home(cache) / name


def test_a_damaged_base_is_fetched_again(store: Store, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = resolve_base(store.url("one.tar"))
    (folder / WEIGHTS).unlink()
    again = resolve_base(store.url("two.tar"))
    assert again.name == "two" and content(again) == FILES and not folder.exists()
    assert "is damaged" in capsys.readouterr().out


def test_what_is_done_is_said_with_its_rate_and_time(
    store: Store, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    store.faults = ["drop"]
    resolve_base(store.url("tiny.tar?signature=secret"))
    said = capsys.readouterr().out
    for line in (
        rf"base tiny is not in the cache yet \({home(cache)}\): fetching it from {store.url()}",
        r"downloading tiny \(3 MB\)",
        r"downloading tiny: \d+ kB of 3 MB, .+B/s, [\d,]+ s left",
        rf"{store.url()}: .+; 1 MB are here, trying again in 0\.01 s",
        r"downloading tiny from 1 MB on, which are here already: done, 2 MB in \d+\.\d s",
        r"checking the SHA-256 of tiny: done, 3 MB in \d+\.\d s",
        r"unpacking 3 files of tiny: done, 3 MB in \d+\.\d s",
    ):
        assert re.search(f"^{line}$", said, re.MULTILINE), (line, said)
    assert "secret" not in said


# --- checksum -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("checksum", "said"),
    [
        ("", r"is fetched only if its SHA-256 is known: set BASE_SHA256"), ("abc", "BASE_SHA256 is 'abc', no SHA-256"),
        ("g" * 64, "no SHA-256"), ("a" * 63, "no SHA-256"), ("a" * 64 + "  tiny.tar", "no SHA-256"),
    ],
)  # fmt: skip
def test_without_a_checksum_nothing_is_asked(
    store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch, checksum: str, said: str
) -> None:
    monkeypatch.setenv("BASE_SHA256", checksum)
    with pytest.raises(FetchFailed, match=f"E3103 .*{said}") as refused:
        resolve_base(store.url("tiny.tar?signature=secret"))
    assert "sha256sum base.tar" in str(refused.value) and "secret" not in str(refused.value)
    assert not store.requests and not cache.exists()


def test_a_wrong_checksum_is_said_with_both_and_nothing_is_kept(
    store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = hashlib.sha256(BODY).hexdigest()
    wanted = found[:16] + "0" * 48  # even one that begins alike
    monkeypatch.setenv("BASE_SHA256", wanted)
    for _ in range(2):
        with pytest.raises(ChecksumMismatch, match=f"E3102 .*has SHA-256 {found}, BASE_SHA256 is {wanted}"):
            resolve_base(store.url())
        assert left(home(cache)) == [".lock"]
    monkeypatch.setenv("BASE_SHA256", found)
    assert content(resolve_base(store.url())) == FILES
    monkeypatch.setenv("BASE_SHA256", wanted)
    with pytest.raises(ChecksumMismatch):
        resolve_base(store.url())


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "https:///base.tar",
        "http://[::1",
        "http://a:b/c",
        "HTTPS://a\n/b",
        "http://a..b",
        f"http://{'a' * 64}/b",
    ],
)
def test_what_is_no_url(cache: Path, url: str) -> None:
    with pytest.raises(FetchFailed, match=r"E3103 .*is no URL that can be fetched"):
        resolve_base(url)


@pytest.mark.parametrize("url", ["ftp://host/base.tar", "file:///etc/base.tar", "s3://bucket/base.tar"])
def test_other_schemes_are_no_base(cache: Path, tmp_path: Path, url: str) -> None:
    with pytest.raises(BaseNotFound, match="E3001"):
        resolve_base(url, tmp_path)


# --- interruptions ------------------------------------------------------------------------------------------------
def test_a_dropped_download_goes_on_where_it_was(store: Store, cache: Path) -> None:
    store.faults = ["drop", "drop"]
    assert content(resolve_base(store.url())) == FILES
    assert store.sent == len(BODY)
    assert [(asked.get("Range"), asked.get("If-Range")) for asked in store.requests] == [
        (None, None), (f"bytes={MEGABYTE}-", '"one"'), (f"bytes={2 * MEGABYTE}-", '"one"'),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "if_range"),
    [
        ({"Last-Modified": "Mon, 02 Jan 2023 00:00:00 GMT"}, "Mon, 02 Jan 2023 00:00:00 GMT"),
        ({"ETag": 'W/"weak"', "Last-Modified": "Tue"}, "Tue"), ({"ETag": 'W/"weak"'}, None), ({}, None),
    ],
)  # fmt: skip
def test_a_version_is_asked_for_as_the_server_gives_one(
    store: Store, cache: Path, fields: dict[str, str], if_range: str | None
) -> None:
    store.fields, store.faults = fields, ["drop"]
    assert content(resolve_base(store.url())) == FILES
    assert store.requests[1].get("If-Range") == if_range


def test_a_server_that_ignores_ranges_sends_all_again(store: Store, cache: Path) -> None:
    store.ranges, store.faults = False, ["drop", "drop"]
    assert content(resolve_base(store.url())) == FILES
    assert store.sent == 2 * MEGABYTE + len(BODY)


def test_a_server_that_says_no_length_will_do(store: Store, cache: Path) -> None:
    store.sized = False
    assert content(resolve_base(store.url())) == FILES


def test_a_file_that_was_replaced_meanwhile_is_begun_anew(store: Store, cache: Path) -> None:
    store.body, store.faults = bytes(len(BODY)), ["drop", 404]
    with pytest.raises(FetchFailed):
        resolve_base(store.url())
    store.body, store.fields = BODY, {"ETag": '"two"'}
    assert content(resolve_base(store.url())) == FILES


def test_a_replaced_file_is_noticed_though_the_server_overlooks_if_range(store: Store, cache: Path) -> None:
    store.fields, store.faults = {"Date-Of-Day": "1", "Last-Modified": "Mon"}, ["drop", 404]
    store.body = bytes(len(BODY))
    with pytest.raises(FetchFailed):
        resolve_base(store.url())
    note = home(cache) / ".archive.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"version": ""}))  # so that no If-Range is sent
    store.body, store.fields = BODY, {"Last-Modified": "Tue"}
    assert content(resolve_base(store.url())) == FILES


@pytest.mark.parametrize("at", ["all of it", "more than it"])
def test_what_is_here_may_be_whole_already_or_too_long(store: Store, cache: Path, at: str) -> None:
    home(cache).mkdir(parents=True)
    (home(cache) / ".archive").write_bytes(BODY + b"more" * (at == "more than it"))
    assert content(resolve_base(store.url())) == FILES
    assert store.requests[0]["Range"].startswith("bytes=") and store.sent == (0 if at == "all of it" else len(BODY))


def test_a_note_that_makes_no_sense_is_no_harm(store: Store, cache: Path) -> None:
    home(cache).mkdir(parents=True)
    (home(cache) / ".archive").write_bytes(BODY[:1000])
    (home(cache) / ".archive.json").write_text('{"source": ')
    assert content(resolve_base(store.url())) == FILES and store.sent == len(BODY) - 1000


def test_another_mirror_goes_on_with_what_the_first_one_gave(store: Store, cache: Path) -> None:
    store.faults = ["drop", 404]
    with pytest.raises(FetchFailed):
        resolve_base(store.url("first.tar"))
    store.fields = {"ETag": '"its own"'}
    assert content(resolve_base(store.url("second.tar"))) == FILES and store.sent == len(BODY)


def test_a_server_that_falls_silent_is_asked_again(
    store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(resumable_download, "STALL_SECONDS", 0.3)
    store.faults = ["hang"]
    assert content(resolve_base(store.url())) == FILES
    assert store.sent == len(BODY) and "nothing came for 0.3 s" in capsys.readouterr().out


def test_errors_that_may_pass_are_asked_again(store: Store, cache: Path) -> None:
    store.faults = [500, 503]
    assert content(resolve_base(store.url())) == FILES and len(store.requests) == 3


def test_redirects_are_followed(store: Store, cache: Path) -> None:
    store.faults = ["drop"]
    assert resolve_base(store.url("moved/llama.tar")).name == "llama"
    assert store.sent == len(BODY)


@pytest.mark.parametrize(
    ("path", "faults", "said"),
    [
        ("tiny.tar", [404], "the server answers 404"), ("tiny.tar", [403], "the server answers 403"),
        ("loop", [], "redirects"), ("to-file", [], "can't be fetched"),
    ],
)  # fmt: skip
def test_errors_that_stay_are_said_at_once(
    store: Store, cache: Path, path: str, faults: list[int | str], said: str
) -> None:
    store.faults = faults
    with pytest.raises(FetchFailed, match=f"E3103 .*{said}"):
        resolve_base(store.url(path))
    assert len(store.requests) <= 1


def test_a_server_that_never_recovers_is_given_up_and_what_came_is_kept(store: Store, cache: Path) -> None:
    store.faults = ["drop", *[500] * 4]
    with pytest.raises(FetchFailed, match=r"answers 500 .*The 1 MB that arrived stay, and the next start resumes"):
        resolve_base(store.url())
    assert len(store.requests) == 4 and not (home(cache) / "tiny").exists()
    store.faults = []
    assert content(resolve_base(store.url())) == FILES and store.sent == len(BODY)


def test_tries_that_bring_something_are_not_counted(store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumable_download, "PAUSES", (0.01,))
    monkeypatch.setattr(resumable_download, "LEAST_GAIN", MEGABYTE)
    store.faults = ["drop", "drop", "drop"]
    assert content(resolve_base(store.url())) == FILES


def test_a_server_that_says_a_wrong_length_is_not_asked_for_ever(store: Store, cache: Path) -> None:
    store.ranges, store.faults = False, ["long"] * 4
    with pytest.raises(FetchFailed, match=r"E3103"):
        resolve_base(store.url())
    assert len(store.requests) == 4 and not (home(cache) / "tiny").exists()


def test_nobody_at_home(cache: Path) -> None:
    with pytest.raises(FetchFailed, match=r"http://127\.0\.0\.1:9/x\.tar can't be fetched: .*Check server and network"):
        resolve_base("http://127.0.0.1:9/x.tar")


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "rubbish://127.0.0.1:9"])
def test_a_proxy_that_can_not_be_used(cache: Path, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(FetchFailed, match=r"E3103 .*can't be (used|fetched)"):
        resolve_base("http://base.invalid/x.tar")


# --- processes ----------------------------------------------------------------------------------------------------
CHILD = """
import sys
from alpaca.errors import exit_on_error
from alpaca.base.find import resolve_base
exit_on_error(lambda: print(resolve_base(sys.argv[1])))()
"""


def child(url: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-c", CHILD, url]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ), **options
    )


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it did not happen within 30 s")


def test_a_killed_process_is_gone_on_with(store: Store, cache: Path) -> None:
    store.faults = ["hang"]
    part = home(cache) / ".archive"
    with child(store.url()) as process:
        wait_until(lambda: part.is_file() and part.stat().st_size == MEGABYTE)
        process.kill()
    assert process.returncode == -9 and not (home(cache) / "tiny").exists()
    assert content(resolve_base(store.url())) == FILES
    assert store.sent == len(BODY)


def test_what_a_process_killed_while_unpacking_left_is_not_taken(store: Store, cache: Path) -> None:
    unfinished = home(cache) / ".unpacking"
    unfinished.mkdir(parents=True)
    (unfinished / WEIGHTS).write_bytes(b"half")
    (unfinished / "extra.json").write_bytes(b"half")
    (home(cache) / ".archive").write_bytes(BODY)
    assert content(resolve_base(store.url())) == FILES
    assert left(home(cache)) == [".lock", ".sha256", "tiny"]


def test_of_two_processes_one_fetches_and_the_other_waits(store: Store, cache: Path) -> None:
    store.faults = ["hang"]
    with child(store.url()) as first:
        wait_until(lambda: store.sent == MEGABYTE)
        with child(store.url()) as second:
            assert second.stdout is not None
            waiting = second.stdout.readline()
            store.go_on.set()  # the first is dropped now and is resumed
            outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert re.match(rf"another process fetches this base into {home(cache)} \(1 MB so far\): waiting for it", waiting)
    assert first.returncode == second.returncode == 0
    assert outputs[0].splitlines()[-1] == outputs[1].splitlines()[-1] == str(home(cache) / "tiny")
    assert store.sent == len(BODY) and len(store.requests) == 2


def test_of_many_threads_one_fetches(store: Store, cache: Path) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(resolve_base(store.url()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {home(cache) / "tiny"} and len(found) == 4 and len(store.requests) == 1


# --- disk ---------------------------------------------------------------------------------------------------------
def test_a_disk_too_small_is_said_before_the_download(
    store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=2 * len(BODY) - 1))
    with pytest.raises(
        FetchFailed, match=r"E3103 .* has 6 MB free; to download and unpack tiny, 6 MB are needed"
    ) as no:
        resolve_base(store.url())
    assert str(home(cache)) in str(no.value) and "ALPACA_CACHE" in str(no.value)
    assert left(home(cache)) == [".lock"]
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=2 * len(BODY)))
    assert content(resolve_base(store.url())) == FILES


def test_a_disk_too_small_for_what_is_packed_is_said_before_it_is_unpacked(
    store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.body = gzip.compress(tar_of(FILES | {WEIGHTS: weights(bytes(50 * MEGABYTE))}))
    expect(monkeypatch, store.body)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=49 * MEGABYTE))
    with pytest.raises(FetchFailed, match="has 49 MB free; to unpack tiny, 50 MB are needed"):
        resolve_base(store.url())
    monkeypatch.undo()
    monkeypatch.setenv("ALPACA_CACHE", str(cache))
    expect(monkeypatch, store.body)
    resolve_base(store.url())
    assert len(store.requests) == 1  # what was downloaded was kept


@pytest.mark.parametrize("step", ["download", "unpack"])
def test_a_disk_that_fills_up_midway(store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """A process that may write no file beyond two megabytes: the same error from the system, for the same call."""
    if step == "unpack":
        store.body = gzip.compress(tar_of(FILES | {WEIGHTS: weights(bytes(3 * MEGABYTE))}))
        expect(monkeypatch, store.body)
    limit = 2 * MEGABYTE
    with child(store.url(), preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and "Traceback" not in errors
    assert re.search(
        rf"error: E3103 FetchFailed: {cache}.* has no room left .* {step}.* tiny, \d MB were needed", errors
    )
    assert not {".unpacking", "tiny"} & set(left(home(cache, store.body)))
    folder = resolve_base(store.url())
    assert (folder / WEIGHTS).stat().st_size > 3 * MEGABYTE
    ranges = [asked.get("Range") for asked in store.requests]
    assert ranges == ([None, f"bytes={limit}-"] if step == "download" else [None])


def test_a_cache_that_can_not_be_made(store: Store, tmp_path: Path, cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(FetchFailed, match=f"E3103 FetchFailed: {cache}.*: Not a directory"):
        resolve_base(store.url())


# --- archives -----------------------------------------------------------------------------------------------------
def raw(name: str, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def with_member(info: tarfile.TarInfo, data: bytes = b"", **other: bytes) -> bytes:
    """The archive of a base without weights, with one more member in front whose header is as `info` has it."""
    rest = {"config.json": b"{}", "tokenizer.json": b"{}", **other}
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512) + tar_of(rest)


def sized(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A base with a header of any size in front, which is written in base 256."""
    block = bytearray(raw(WEIGHTS, type=kind).tobuf(tarfile.GNU_FORMAT))
    block[124:136] = size.to_bytes(12, "big", signed=True)
    block[124] |= 0x80
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + tar_of(FILES)


GOOD = {WEIGHTS: FILES[WEIGHTS]}
LONG = raw("././@LongLink", type=tarfile.GNUTYPE_LONGNAME, size=10)
HOSTILE: dict[str, tuple[bytes, str]] = {
    "symbolic link": (with_member(raw(WEIGHTS, type=tarfile.SYMTYPE, linkname="/etc/passwd")), "is a link, a device"),
    "hard link": (with_member(raw(WEIGHTS, type=tarfile.LNKTYPE, linkname="config.json")), "is a link, a device"),
    "fifo": (with_member(raw(WEIGHTS, type=tarfile.FIFOTYPE)), "is a link, a device"),
    "device": (with_member(raw(WEIGHTS, type=tarfile.CHRTYPE, devmajor=1, devminor=5)), "is a link, a device"),
    "folder for a file": (with_member(raw(WEIGHTS, type=tarfile.DIRTYPE)), "is a link, a device"),
    "sparse": (with_member(raw(WEIGHTS, type=tarfile.GNUTYPE_SPARSE, size=0)), "a sparse file; make the tar"),
    "upwards": (tar_of({"../evil.json": b"x", **FILES}), "'../evil.json' leads out of the folder"),
    "upwards inside": (tar_of({"a/../../config.json": b"x", **FILES}), "leads out of the folder"),
    "absolute": (tar_of({"/tmp/evil.json": b"x", **FILES}), "leads out of the folder"),
    "twice": (with_member(raw("config.json", size=1), b"x", **GOOD), "it has config.json twice"),
    "twice by a dot": (with_member(raw("./config.json", size=1), b"x", **GOOD), "has config.json twice"),
    "size below zero": (sized(-1024), "a member of -1024 bytes"),
    "size beyond all": (sized(1 << 70), "it ends early"),
    "huge header": (with_member(raw("x", type=tarfile.XHDTYPE, size=2 << 20), bytes(2 << 20)), "member of 2097152"),
    "name below zero": (sized(-1024, tarfile.GNUTYPE_LONGNAME), "a member of -1024 bytes"),
    "fields below zero": (sized(-512, tarfile.XHDTYPE), "a member of -512 bytes"),
    "endless name": (sized(1 << 40, tarfile.GNUTYPE_LONGNAME), "special member of 1099511627776 bytes"),
    "chain of headers": ((LONG.tobuf(tarfile.GNU_FORMAT) + bytes(512)) * 2000 + tar_of(FILES), "can't be read"),
    "many members": (b"".join(raw(f"{n}.txt").tobuf() for n in range(10_001)) + bytes(1024), "over 10000 members"),
    "bomb": (gzip.compress(tar_of({"x.bin": bytes(70 << 20), "config.json": b"{}"})), "swells to over 30 times"),
    "cut": (BODY[: len(BODY) // 2], "can't be read as a tar.*it ends early"),
    "gzip cut": (gzip.compress(BODY)[:-100_000], "can't be read as a tar"),
    "gzip header without an end": (b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * (12 << 20), "nothing comes out of 2097152"),
    "gzip damaged": (gzip.compress(BODY)[:1000] + bytes(1000), "can't be read as a tar"),
    "no tar": (b"<html>not found</html>" * 1000, "can't be read as a tar"),
    "empty": (b"", "can't be read as a tar"),
    "a zip": (b"PK\x03\x04" + bytes(3000), "can't be read as a tar"),
    "no base": (tar_of({"README.md": b"hello"}), "has no config.json.*tar cf"),
    "two bases": (tar_of({f"{top}/{n}": c for top in "ab" for n, c in FILES.items()}), "several bases: a, b"),
    "too deep": (tar_of({f"a/b/{n}": c for n, c in FILES.items()}), "has no config.json"),
    "pickled weights": (with_member(raw("pytorch_model.bin", size=1), b"x"), r"tiny has no \*.safetensors weights"),
    "no tokenizer": (tar_of({"config.json": b"{}", WEIGHTS: FILES[WEIGHTS]}), "tiny has no tokenizer"),
    "a shard missing": (
        tar_of(
            {n: c for n, c in FILES.items() if n != WEIGHTS}
            | {f"{WEIGHTS}.index.json": b'{"weight_map": {"a": "model-2.safetensors"}}'}
        ),
        "lacks 1 of 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", HOSTILE)
def test_an_archive_that_is_no_base(
    store: Store, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    store.body, said = HOSTILE[fault]
    expect(monkeypatch, store.body)
    with pytest.raises(BadBase, match=f"(?s)E3003 BadBase: {re.escape(store.url())} is no archive .*({said})"):
        resolve_base(store.url())
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {home(cache, store.body) / ".lock"}


def test_what_a_base_does_not_need_is_passed_over(store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = {
        "onnx/config.json": b"[]", "original/params.json": b"x", "pytorch_model.bin": b"x", "run.py": b"x",
        "._config.json": b"x", "a\nb.json": b"x", "早.json": b"x", "sub/deep/er/tokenizer.json": b"x",
    }  # fmt: skip
    link = raw("README.md", type=tarfile.SYMTYPE, linkname="/etc/passwd").tobuf(tarfile.GNU_FORMAT)
    store.body = link + tar_of({**others, **{f"./{name}": data for name, data in FILES.items()}})
    expect(monkeypatch, store.body)
    assert content(resolve_base(store.url())) == FILES


# --- clients ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scheme", ["http://", "HTTPS://", "ftp://", "file://"])
def test_a_training_input_makes_the_server_fetch_nothing(
    store: Store, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "a", "output": "b"}\n')
    monkeypatch.setenv("BASE_MODEL", store.url("operators.tar"))
    url = store.url().replace("http://", scheme)
    with pytest.raises(BadSetting, match=f"E5001 .*base_model is '{url}': give a folder in weights/ or a hub id"):
        prepare({"train_data": rows, "base_model": url})
    assert not store.requests and not cache.exists()


@pytest.mark.parametrize("named", [True, False])
def test_a_training_may_use_the_operators_url(
    store: Store, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    """It gets as far as the base: an empty one, at which it ends."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "a", "output": "b"}\n')
    monkeypatch.setenv("BASE_MODEL", store.url())
    values = prepare({"train_data": rows, "quantization": "fp32", **({"base_model": store.url()} if named else {})})
    with pytest.raises(BadBase, match=str(home(cache) / "tiny")):
        run_job(values, tmp_path / "work")
    assert len(store.requests) == 1
