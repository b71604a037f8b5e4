"""The server of the tiny base with two adapters and eight places, and a gateway in front of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from alpaca.cogserver.server import Server
from tests.conftest import ROOT
from tests.gateway.running import RunningGateway, other_model
from tests.server.over_http import READY_SECONDS, environment
from tests.serving.peft_adapters import make_adapter


@pytest.fixture(scope="session")
def adapter_folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    make_adapter(tiny_base, folder / "a", seed=1)
    make_adapter(tiny_base, folder / "b", seed=2, r=24, use_rslora=True, target_modules=["q_proj", "down_proj"])
    return folder


@pytest.fixture(scope="session")
def server(tiny_base: Path, adapter_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    told = environment(
        tiny_base, tmp_path_factory.mktemp("cache"), ADAPTER_FOLDERS=str(adapter_folder), MAX_CONCURRENCY="8"
    )
    with Server(project=ROOT, environment=told) as running:
        running.wait_ready(READY_SECONDS)
        yield running


@pytest.fixture(scope="session")
def gateway(server: Server, adapter_folder: Path) -> Iterator[RunningGateway]:
    with RunningGateway("--reports", str(adapter_folder), upstreams=[server.url]) as running:
        yield running.wait()


@pytest.fixture(scope="session")
def other_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return other_model(tmp_path_factory.mktemp("other"))
