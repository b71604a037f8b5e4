"""Training over HTTP: rows go in, an archive of LoRA weights comes out, and the predictor serves it."""

from __future__ import annotations

import base64
import http.server
import io
import json
import tempfile
import threading
import time
import zipfile
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest

from alpaca.cogserver.schema import TRAIN
from alpaca.cogserver.server import Server
from tests.server.over_http import Start, post

pytestmark = pytest.mark.server
QUESTION, ANSWER = "What does the alpaca eat?", "hay and grass in the field"
WORDS = ["the", "alpaca", "eats", "hay", "and", "grass", "in", "field", "with", "herd"]
ROWS = [{"instruction": QUESTION, "output": ANSWER}] * 8 + [{"instruction": f"Say {w}", "output": w} for w in WORDS]


def data_url(rows: list[dict[str, str]], *, kind: str = "application/jsonl") -> str:
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def job_folder(server: Server) -> Path:
    """Where a server's job writes its adapter; it is named after the worker, and other servers run beside it."""
    (worker,) = [child.pid for child in psutil.Process(server.process.pid).children()]
    return Path(tempfile.gettempdir()) / f"alpaca-job-{worker}" / "adapter"


@pytest.fixture(scope="module")
def trainer(start_server: Start, tiny_base: Path) -> Server:
    return start_server(tiny_base, TRAIN)


@pytest.fixture(scope="module")
def archive(trainer: Server) -> bytes:
    """The archive of a training long enough to learn the one answer by heart."""
    settings = {"quantization": "fp32", "num_epochs": 40, "batch_size": 4, "val_set_size": 0, "learning_rate": 0.01}
    settings["replay_ratio"] = 0
    body = post(trainer, {"train_data": data_url(ROWS), **settings}).json()
    assert body["status"] == "succeeded", body
    assert "step" in body["logs"] and "verified" in body["logs"]
    return base64.b64decode(body["output"]["weights"].partition("base64,")[2])


def test_the_archive_holds_the_adapter_and_no_optimizer_state(archive: bytes) -> None:
    names = zipfile.ZipFile(io.BytesIO(archive)).namelist()
    assert {"adapter_config.json", "adapter_model.safetensors", "alpaca.json", "README.md"} <= set(names)
    assert {"report/index.html", "report/report.json", "report/training.json"} <= set(names)
    assert not [name for name in names if "optimizer" in name or "checkpoint" in name]


def test_what_training_returns_is_served(archive: bytes, start_server: Start, tiny_base: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.zip"
    weights.write_bytes(archive)
    server = start_server(tiny_base, COG_WEIGHTS=str(weights))
    ask = {"prompt": QUESTION, "temperature": 0, "max_tokens": 32}
    assert "".join(post(server, ask).json()["output"]).strip() == ANSWER
    assert "".join(post(server, {**ask, "adapter_scale": 0}).json()["output"]).strip() != ANSWER
    server.stop()


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        ({"train_data": "/etc/hostname"}, "E5001"),
        ({"train_data": data_url([{"instruction": "no answer"}])}, "E2003"),
        ({"train_data": data_url(ROWS), "base_model": "nobody"}, "E3001"),
        ({"train_data": data_url(ROWS), "base_model": "tests/made_before/base"}, "E3001"),
        ({"train_data": data_url(ROWS), "validation_data": "/etc/hostname"}, "E5001"),
        ({"train_data": data_url(ROWS), "lora_target_modules": "nothing"}, "E5001"),
        ({"train_data": data_url(ROWS), "train_template": "../secret"}, "E2101"),
        ({"train_data": data_url(ROWS), "adapter": "lora-alpaca"}, "E5001"),
        ({"train_data": data_url(ROWS), "adapter": "https://127.0.0.1/a.zip"}, "E4005"),
        ({"train_data": data_url(ROWS), "new_adapter": True}, "E5001"),
        ({"train_data": data_url(ROWS, kind="application/zip"), "report_budget": 0}, ""),
    ],
)
def test_bad_inputs_fail_with_their_code(trainer: Server, inputs: dict[str, object], code: str) -> None:
    body = post(trainer, inputs).json()
    if not code:  # the content decides, not the name that the client gave
        assert body["status"] in ("succeeded", "failed")
        return
    assert body["status"] == "failed" and f" {code} " in body["error"], body


def test_rows_come_over_plain_http_though_webhooks_do_not(trainer: Server, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as files:
        threading.Thread(target=files.serve_forever, daemon=True).start()
        body = post(trainer, {"train_data": f"http://127.0.0.1:{files.server_port}/rows.jsonl"}).json()
        files.shutdown()
    assert body["status"] == "failed" and " E2003 " in body["error"], "it was read, and holds no rows"


@pytest.mark.parametrize(
    "inputs", [{}, {"train_data": data_url(ROWS), "num_epochs": -1}, {"train_data": data_url(ROWS), "lora_r": "many"}]
)
def test_inputs_outside_the_schema_are_refused(trainer: Server, inputs: dict[str, object]) -> None:
    assert post(trainer, inputs).status_code == 422


def test_a_cancelled_training_stops_and_the_next_one_works(trainer: Server) -> None:
    ended: list[dict[str, object]] = []
    endless = {"train_data": data_url(ROWS), "num_epochs": 10_000, "quantization": "fp32", "val_set_size": 0}

    def run() -> None:
        body = {"id": "endless", "input": endless}
        ended.append(httpx.post(f"{trainer.url}{TRAIN.path}", json=body, timeout=180).json())

    thread = threading.Thread(target=run)
    thread.start()
    while not job_folder(trainer).is_dir():
        assert thread.is_alive()
        time.sleep(0.1)
    assert httpx.post(f"{trainer.url}{TRAIN.path}/endless/cancel", timeout=60).status_code == 200
    thread.join(60)
    assert not thread.is_alive() and ended[0]["status"] == "canceled"
    body = post(
        trainer, {"train_data": data_url(ROWS), "num_epochs": 1, "quantization": "fp32", "report_budget": 0}
    ).json()
    assert body["status"] == "succeeded", body
    assert not job_folder(trainer).exists()
