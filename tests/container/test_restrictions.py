"""Less than a container usually has: no root, writable disk, network, or memory. It works, or says what it needs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from alpaca.adapter.archive import pack
from alpaca.cogserver.schema import TRAIN
from tests.container.conftest import Run
from tests.container.container import TRAINS, Container, environment, mount
from tests.container.test_container_serving import ASK, ROWS, expected, rows_url, text
from tests.server.over_http import post

pytestmark = pytest.mark.container
LOCKED = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
NOBODY = ("--user", "12345:23456")
INSIDE = """
import json, urllib.request
request = urllib.request.Request('http://127.0.0.1:5000/predictions', {body!r}, {{'Content-Type': 'application/json'}})
print(urllib.request.urlopen(request).read().decode())
"""


def post_inside(container: Container, inputs: dict[str, Any]) -> dict[str, Any]:
    """Ask from inside: without a network nobody else can."""
    body = json.dumps({"input": inputs}).encode()
    answer: dict[str, Any] = json.loads(container.python(INSIDE.format(body=body)))
    return answer


def test_without_root_writable_disk_capabilities_and_network(run: Run, on_tiny: tuple[str, ...], shelf: Path) -> None:
    server = run(*LOCKED, *NOBODY, "--network", "none", *on_tiny, *environment(ALPACA_CACHE="/tmp/cache"))
    for question in ("started", "alive"):
        wait_inside(server, question)
    body = post_inside(server, {**ASK, "adapter": "first"})
    assert "".join(body["output"]).strip() == expected(shelf / "tiny", shelf / "adapters" / "first")
    refused = post_inside(server, {**ASK, "adapter": "https://example.com/adapter.zip"})
    assert "E4005 DownloadRefused" in refused["error"]
    assert server.python("import os; print(os.getuid(), os.getgid())") == "12345 23456"


def wait_inside(server: Container, question: str) -> None:
    """Until the health command inside says yes."""
    code = "import subprocess, sys, time\nfor _ in range(300):\n"
    code += f"    if not subprocess.run([sys.executable, '-m', 'alpaca.health', '{question}']).returncode: break\n"
    code += "    time.sleep(0.2)\nelse: sys.exit('never')"
    server.python(code)


def test_a_cache_that_cannot_be_written_is_named(
    run: Run, on_tiny: tuple[str, ...], shelf: Path, tmp_path: Path
) -> None:
    archive = pack(shelf / "adapters" / "first", tmp_path / "packed.zip")
    archive.chmod(0o644)
    options = (*LOCKED, *NOBODY, *on_tiny, *mount(archive, "/shelf2/packed.zip"))
    server = run(*options, *environment(ADAPTER_FOLDERS="/shelf/adapters:/shelf2")).ready()
    error = post(server, {**ASK, "adapter": "packed.zip"}).json()["error"]
    assert "E4008 CacheUnusable" in error and "/.cache/alpaca" in error and "ALPACA_CACHE" in error
    assert text(post(server, ASK))
    cached = run(*options, *environment(ADAPTER_FOLDERS="/shelf2", ALPACA_CACHE="/tmp/cache")).ready()
    answer = text(post(cached, {**ASK, "adapter": "packed.zip"})).strip()
    assert answer == expected(shelf / "tiny", shelf / "adapters" / "first")


def test_training_without_root_and_writable_disk(run: Run, on_tiny: tuple[str, ...]) -> None:
    trainer = run(*LOCKED, *NOBODY, *on_tiny, mode=TRAIN, command=TRAINS).ready()
    body = post(trainer, {"train_data": rows_url(ROWS), "num_epochs": 1, "val_set_size": 0}).json()
    assert body["status"] == "succeeded", body
    assert "report" in body["logs"] and "Traceback" not in body["logs"]


def test_the_limit_of_memory_decides_how_much_is_taken(run: Run, on_tiny: tuple[str, ...]) -> None:
    server = run("--memory", "1500m", "--memory-swap", "1500m", *on_tiny, *environment(PRECISION="auto")).ready()
    said = "\n".join(server.messages())
    free = [float(number) for number in re.findall(r"of ([\d.]+) GB free", said)]
    assert free and all(0 < gigabytes < 1.6 for gigabytes in free), said
    assert text(post(server, ASK))


@pytest.mark.parametrize(
    ("limit", "reason"), [("650m", "E1104 NoRoom"), ("300m", "worker crashed")], ids=["little", "next to nothing"]
)
def test_too_little_memory_for_the_base_is_said_at_the_start(run: Run, limit: str, reason: str) -> None:
    """Where not even the libraries fit, the system ends the worker before it can say anything."""
    server = run("--memory", limit, "--memory-swap", limit, *environment(PRECISION="bf16"))
    assert reason in server.wait("SETUP_FAILED")["setup"]["logs"]
