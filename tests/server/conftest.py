"""Cog's real server, started on free ports and always ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from alpaca.cogserver.schema import PREDICT, Endpoint
from alpaca.cogserver.server import Server
from tests.conftest import ROOT
from tests.server.over_http import READY_SECONDS, Start, environment


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts a server: start_server(base, mode=TRAIN, COG_WEIGHTS=…). All are ended with the session."""
    servers: list[Server] = []

    def start(base: Path, mode: Endpoint = PREDICT, *, wait: bool = True, **more: str) -> Server:
        cache = tmp_path_factory.mktemp("cache")
        servers.append(Server(mode, project=ROOT, environment=environment(base, cache, **more)))
        if wait:
            servers[-1].wait_ready(READY_SECONDS)
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def served(start_server: Start, tiny_base: Path) -> Server:
    """One server for all tests that need nothing but the tiny base."""
    return start_server(tiny_base)
