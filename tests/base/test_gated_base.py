"""A base that is gated on the hub, over HTTP: a token opens it for training jobs and the server, and stays secret."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from alpaca.cogserver.schema import TRAIN
from alpaca.cogserver.server import Server
from tests.base.hub_stand_in import Hub, stand_in
from tests.conftest import ROOT
from tests.server.over_http import READY_SECONDS, post, post_together
from tests.training.runs import make_rows

TOKEN = "hf_notARealToken"
SMALL = {"num_epochs": 1, "val_set_size": 0, "replay_ratio": 0, "report_budget": 0, "quantization": "fp32"}


@pytest.fixture
def hub(tiny_base: Path) -> Iterator[Hub]:
    with stand_in("owner/gated", tiny_base, TOKEN) as started:
        yield started


def surroundings(hub: Hub, home: Path, **more: str) -> dict[str, str]:
    """Variables for a process whose hub is ours, with nothing fetched yet."""
    own = {"HF_ENDPOINT": hub.address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {**own, "HF_TOKEN": "", "BASE_MODEL": "", "OMP_NUM_THREADS": "1", **more}


@pytest.mark.server
def test_the_token_of_a_training_request_is_used_and_kept_nowhere(hub: Hub, tmp_path: Path) -> None:
    rows = "data:application/jsonl," + "%0A".join(json.dumps(row) for row in make_rows(4))
    inputs = {**SMALL, "train_data": rows, "base_model": "owner/gated", "batch_size": 4}
    env = surroundings(hub, tmp_path / "home", ALPACA_ALLOWED_BASES="owner/*", OUTPUT_DIR=str(tmp_path / "kept"))
    with Server(TRAIN, project=ROOT, environment=env) as server:
        server.wait_ready(READY_SECONDS)
        refused = post(server, inputs).json()
        assert refused["status"] == "failed" and "E3001" in refused["error"]
        (answer,) = post_together(server, [{**inputs, "hf_token": TOKEN}])
        assert answer.json()["status"] == "succeeded", answer.text
        assert TOKEN not in answer.text
        assert TOKEN not in server.log_tail(10_000)
    (archive,) = (tmp_path / "kept").glob("*.zip")
    with zipfile.ZipFile(archive) as packed:
        assert not [name for name in packed.namelist() if TOKEN.encode() in packed.read(name)]
    written = [path for path in tmp_path.rglob("*") if TOKEN in path.name or TOKEN.encode() in _bytes(path)]
    assert not written


@pytest.mark.server
def test_a_server_takes_the_token_of_its_environment(hub: Hub, tmp_path: Path) -> None:
    env = surroundings(hub, tmp_path / "home", BASE_MODEL="owner/gated", HF_TOKEN=TOKEN, COG_WEIGHTS="")
    with Server(project=ROOT, environment=env) as server:
        server.wait_ready(READY_SECONDS)
        assert TOKEN not in json.dumps(server.health()) + server.log_tail(10_000)
    assert "model.safetensors" in hub.served


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""
