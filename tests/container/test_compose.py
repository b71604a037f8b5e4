"""deploy/compose.yaml as it is, with the Compose that is there: both services, and a worker that dies."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Iterator

import httpx
import pytest

from alpaca.cogserver.schema import PREDICT, TRAIN, Endpoint
from alpaca.cogserver.server import free_port
from tests.container.container import WORKER, Container, docker, given
from tests.container.dockerfile import ROOT
from tests.container.test_container_serving import ASK, rows_url, text
from tests.server.over_http import post

pytestmark = pytest.mark.container
PROJECT = "alpaca-test-compose"
RESTART_SECONDS = 180.0  # two health checks, the questions of one, and a start


class Service(Container):
    """A container that Compose started."""

    def __init__(self, name: str, mode: Endpoint = PREDICT) -> None:
        self.mode = mode
        self.id = docker("ps", "--quiet", "--filter", f"label=com.docker.compose.service={name}")

    @property
    def url(self) -> str:
        """The server's own address: its port is not published, but this machine reaches it."""
        address = docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", self.id)
        return f"http://{address.strip()}:5000"


@pytest.fixture(scope="module")
def compose(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The command; what it starts is taken down again, volumes included."""
    adapters = tmp_path_factory.mktemp("adapters")
    values = {"IMAGE": image, "ADAPTERS": str(adapters), "MEMORY": "4g", "TRAIN_MEMORY": "4g"}
    values |= {"PORT": str(free_port()), "TRAIN_PORT": str(free_port())}
    command = [*shlex.split(given("ALPACA_TEST_COMPOSE")), "-p", PROJECT]
    command += ["-f", str(ROOT / "deploy" / "compose.yaml"), "--profile", "train"]
    before = dict(os.environ)
    os.environ.update(values)
    try:
        subprocess.run([*command, "up", "-d"], check=True)
        yield command
    finally:
        subprocess.run([*command, "down", "--volumes", "--timeout", "1"], check=True)
        os.environ.clear()
        os.environ.update(before)


def test_the_predictor_answers(compose: list[str]) -> None:
    assert text(post(Service("predictor").ready(), ASK))


def test_the_gateway_asks_the_predictor(compose: list[str]) -> None:
    Service("predictor").ready()
    body = {"model": "", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    url = f"http://127.0.0.1:{os.environ['PORT']}"
    deadline = time.monotonic() + 60
    while httpx.get(f"{url}/health").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(1)
    body["model"] = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120).json()
    assert answer["choices"][0]["message"]["content"]
    assert httpx.get(url).headers["content-security-policy"]


def test_the_trainer_keeps_its_adapter_in_the_volume(compose: list[str]) -> None:
    trainer = Service("trainer", TRAIN).ready()
    rows = rows_url([{"instruction": "Say hay.", "output": "hay"}] * 4)
    body = post(trainer, {"train_data": rows, "num_epochs": 1, "val_set_size": 0, "report_budget": 0}).json()
    assert body["status"] == "succeeded", body
    kept = trainer.python("import os; print(sorted(os.listdir('/output')))")
    assert ".zip" in kept and "/output/lora-" in body["logs"]


def test_a_worker_that_died_ends_the_container_and_it_comes_back(compose: list[str]) -> None:
    server = Service("predictor").ready()
    server.kill(WORKER)
    server.wait("UNHEALTHY", "DEFUNCT", seconds=20)
    deadline = time.monotonic() + RESTART_SECONDS
    while server.restarts() == 0:
        assert time.monotonic() < deadline, server.state()
        time.sleep(1)
    assert text(post(server.ready(), ASK))


def test_docker_calls_it_healthy(compose: list[str]) -> None:
    server = Service("predictor").ready()
    deadline = time.monotonic() + 90
    while server.state()["Health"]["Status"] != "healthy":
        assert time.monotonic() < deadline, server.state()
        time.sleep(1)
