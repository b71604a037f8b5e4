"""COG_WEIGHTS: an adapter from a folder, a zip or a URL is served; a bad one fails the set-up with its reason."""

from __future__ import annotations

import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from alpaca.archive import pack
from alpaca.cogserver import Server, ServerFailed
from tests.conftest import ROOT
from tests.server.over_http import Start, environment, post
from tests.serving.peft_adapters import edit_config, make_adapter

pytestmark = pytest.mark.server
ASK = {"prompt": "hay", "temperature": 0, "max_tokens": 16}


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny_base, tmp_path_factory.mktemp("adapters") / "mine", template="alpaca")


@pytest.fixture(scope="module")
def expected(tiny_base: Path, adapter: Path) -> str:
    """What the adapter answers in this process."""
    from alpaca.compare import answer
    from alpaca.serving.inputs import request_from_inputs
    from alpaca.serving.loading import load_base, open_engine

    engine = open_engine(load_base(str(tiny_base), "fp32"), adapter)
    try:
        return answer(engine, request_from_inputs(**ASK))
    finally:
        engine.close()


def text(server: Server, **more: float) -> str:
    body = post(server, {**ASK, **more}).json()
    assert body["status"] == "succeeded", body
    return "".join(body["output"]).strip()


def test_a_folder_is_served(start_server: Start, tiny_base: Path, adapter: Path, expected: str) -> None:
    server = start_server(tiny_base, COG_WEIGHTS=str(adapter))
    log = server.health()["setup"]["logs"] + server.log_tail(100)
    assert "fp32" in log and "as asked" in log  # base, precision and why
    assert "rank 4, changes 4 of its 4 modules" in log
    assert "template: alpaca" in log
    assert text(server) == expected
    assert text(server, adapter_scale=0) != expected
    assert text(server) == expected
    server.stop()


def test_a_zip_by_url_is_served(
    start_server: Start, tiny_base: Path, adapter: Path, expected: str, tmp_path: Path
) -> None:
    pack(adapter, tmp_path / "trained.zip")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as store:
        thread = threading.Thread(target=store.serve_forever)
        thread.start()
        host = f"127.0.0.1:{store.server_address[1]}"
        url = f"http://{host}/trained.zip?signature=x"
        server = start_server(tiny_base, COG_WEIGHTS=url, ALPACA_ALLOWED_HOSTS=host)
        store.shutdown()
        thread.join()
    assert text(server) == expected
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
