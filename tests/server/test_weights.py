"""COG_WEIGHTS: an adapter from a folder, a zip or a URL is served; a bad one fails the set-up with its reason."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from alpaca.adapter.archive import pack
from alpaca.cogserver.server import Server, ServerFailed
from tests.conftest import ROOT
from tests.server.over_http import Start, environment, post, post_together
from tests.serving.oracle import Oracle
from tests.serving.peft_adapters import edit_config, make_adapter

pytestmark = pytest.mark.server
ASK = {"prompt": "hay", "temperature": 0, "max_tokens": 16}


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny_base, tmp_path_factory.mktemp("adapters") / "mine", template="alpaca")


@pytest.fixture(scope="module")
def expected(tiny_base: Path, adapter: Path) -> str:
    """What the adapter answers in this process."""
    from alpaca.serving.inputs import request_from_inputs
    from alpaca.serving.loading import load_base, open_engine
    from alpaca.serving.together import answers

    engine = open_engine(load_base(str(tiny_base), "fp32"), adapter)
    try:
        return answers(engine, [request_from_inputs(**ASK)])[0].text
    finally:
        engine.close()


@contextlib.contextmanager
def file_server(folder: Path, address: str = "127.0.0.1") -> Iterator[str]:
    """Serves a folder's files over http; gives host:port."""
    with ThreadingHTTPServer((address, 0), partial(SimpleHTTPRequestHandler, directory=str(folder))) as store:
        thread = threading.Thread(target=store.serve_forever)
        thread.start()
        try:
            yield f"{address}:{store.server_address[1]}"
        finally:
            store.shutdown()
            thread.join()


def texts(server: Server, *asked: dict[str, float | str]) -> list[str]:
    """The answers to ASK with the given inputs, all asked at once."""
    bodies = [response.json() for response in post_together(server, [{**ASK, **more} for more in asked])]
    assert all(body["status"] == "succeeded" for body in bodies), bodies
    return ["".join(body["output"]).strip() for body in bodies]


def test_a_folder_is_served(start_server: Start, tiny_base: Path, adapter: Path, expected: str) -> None:
    server = start_server(tiny_base, COG_WEIGHTS=str(adapter))
    log = server.health()["setup"]["logs"] + server.log_tail(100)
    assert "fp32" in log and "as asked" in log  # base, precision and why
    assert "changes 4 of its 4 modules" in log
    assert "template: alpaca" in log
    assert texts(server, {}) == [expected]
    assert texts(server, {"adapter_scale": 0}) != [expected]
    assert texts(server, {}) == [expected]
    server.stop()


def test_a_zip_by_url_is_served(
    start_server: Start, tiny_base: Path, adapter: Path, expected: str, tmp_path: Path
) -> None:
    pack(adapter, tmp_path / "trained.zip")
    with file_server(tmp_path) as host:
        url = f"http://{host}/trained.zip?signature=x"
        server = start_server(tiny_base, COG_WEIGHTS=url, ALPACA_ALLOWED_HOSTS=host)
    assert texts(server, {}) == [expected]
    server.stop()


def broken_config(folder: Path) -> None:
    edit_config(folder, target_modules="(a+)+$")


def other_base(folder: Path) -> None:
    card = folder / "alpaca.json"
    card.write_text(card.read_text().replace('"base_fingerprint": "', '"base_fingerprint": "0'))


def cut_weights(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "code"),
    [(broken_config, "E4002 BadAdapter"), (other_base, "E4003 WrongBase"), (cut_weights, "E4002"), (None, "E4001")],
)
def test_a_bad_adapter_fails_the_set_up_with_its_reason(
    tiny_base: Path, adapter: Path, tmp_path: Path, spoil: object, code: str
) -> None:
    folder = tmp_path / "spoilt"
    if callable(spoil):
        shutil.copytree(adapter, folder)
        spoil(folder)
    with (
        Server(project=ROOT, environment=environment(tiny_base, tmp_path, COG_WEIGHTS=str(folder))) as server,
        pytest.raises(ServerFailed) as caught,
    ):
        server.wait_ready(180)
    assert code in str(caught.value)
    assert server.process.returncode is not None


def test_adapters_named_by_requests_are_served_in_one_batch(
    start_server: Start, tiny_base: Path, adapter: Path, expected: str, tmp_path: Path
) -> None:
    """A folder beside the server, an archive of it, a URL of that archive, and the base, all at the same time."""
    archive = pack(adapter, tmp_path / "packed.zip")
    with file_server(tmp_path) as host:
        url = f"http://{host}/{archive.name}"
        server = start_server(tiny_base, ADAPTER_FOLDERS=f"{adapter.parent}:{tmp_path}", ALPACA_ALLOWED_HOSTS=host)
        named = ["mine", archive.name, url, "none"] * 2
        said = texts(server, *({"adapter": name} for name in named))
        older = texts(server, {"replicate_weights": url})
    assert said[:3] == said[4:7] == [expected] * 3
    assert said[3] == said[7] != expected
    assert older == [expected]
    server.stop()


def test_several_adapters_make_one_answer(start_server: Start, tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    """A composition of names and one with a URL in it, in one batch with each adapter and the base."""
    second = make_adapter(tiny_base, tmp_path / "second", seed=2, r=16, target_modules=["k_proj", "down_proj"])
    shutil.copytree(adapter, tmp_path / "mine")
    oracle = Oracle(tiny_base, tmp_path)
    with file_server(tmp_path) as host:
        pack(second, tmp_path / "packed.zip")
        listed = [{"name": "mine", "scale": 0.7}, {"url": f"http://{host}/packed.zip", "scale": 0.5}]
        server = start_server(tiny_base, ADAPTER_FOLDERS=str(tmp_path), ALPACA_ALLOWED_HOSTS=host)
        named = ["mine:0.7+second:0.5", "mine", "second", "none", "second:1+mine:1.4"]
        plain: dict[str, float | str] = {"prompt_template": "{prompt}"}
        said = texts(server, *({**plain, "adapter": name} for name in named))
        half = texts(
            server, {**plain, "adapter": named[4], "adapter_scale": 0.5}, {**plain, "adapter": json.dumps(listed)}
        )
    assert said == [oracle.text("hay", name, max_tokens=16).strip() for name in named]
    assert half == [said[0]] * 2
    refused = post(server, {**ASK, "adapter": "mine:0.7+mine:0.5"}).json()
    assert refused["status"] == "failed" and "E1006 BadComposition: adapter names mine twice" in refused["error"]
    server.stop()


@pytest.mark.parametrize("name", ["other", "../secret", "/etc", "http://169.254.169.254/latest"])
def test_what_a_request_may_not_name_is_refused(served: Server, name: str) -> None:
    body = post(served, {**ASK, "adapter": name}).json()
    assert body["status"] == "failed" and ("E4001" in body["error"] or "E4005" in body["error"])
