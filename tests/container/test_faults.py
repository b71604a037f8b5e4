"""What docs/operations.md says happens when things go wrong: processes killed, disks full, memory short."""

from __future__ import annotations

import base64
import contextlib
import io
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from alpaca.adapter.archive import pack
from alpaca.cogserver.schema import TRAIN
from tests.container.conftest import Run
from tests.container.container import TRAINING, TRAINS, WORKER, Container, docker, environment, mount
from tests.container.test_container_serving import ASK, ROWS, expected, rows_url, text
from tests.server.over_http import events, post

pytestmark = pytest.mark.container
LONG = {"prompt": "hay", "max_tokens": 900, "min_tokens": 900, "seed": 1}
JOB = {
    "train_data": rows_url(ROWS), "quantization": "fp32", "num_epochs": 120, "batch_size": 2, "val_set_size": 0,
    "learning_rate": 0.001, "replay_ratio": 0, "report_budget": 0,
}  # fmt: skip
OUTPUT = environment(OUTPUT_DIR="/output")


@contextmanager
def in_background(call: Callable[[], Any]) -> Iterator[list[Any]]:
    """Runs the call beside the block; its result, or what it raised, is in the list afterwards."""
    results: list[Any] = []

    def work() -> None:
        try:
            results.append(call())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield results
    thread.join(180)
    assert not thread.is_alive()


def wait_for_log(container: Container, words: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while words not in container.log():
        assert time.monotonic() < deadline, container.log()[-2000:]
        time.sleep(0.1)


def weights(body: dict[str, Any]) -> bytes:
    """The adapter's tensors in the archive that a training gave."""
    assert body["status"] == "succeeded", body
    packed = base64.b64decode(body["output"]["weights"].partition("base64,")[2])
    return zipfile.ZipFile(io.BytesIO(packed)).read("adapter_model.safetensors")


# --- predictions --------------------------------------------------------------------------------------------------
def test_docker_stop_lets_a_running_answer_end(run: Run, on_tiny: tuple[str, ...]) -> None:
    server = run(*on_tiny).ready()
    completed: dict[str, Any] = {}
    stopping = threading.Thread(target=server.stop)
    for name, data in events(server, LONG):
        if name == "output" and stopping.ident is None:
            stopping.start()
        completed = data
    stopping.join()
    assert completed["status"] == "succeeded" and completed["metrics"]["output_token_count"] == 900
    assert server.state()["ExitCode"] == 0


def test_a_container_that_is_killed_loses_the_answer_and_nothing_else(
    run: Run, on_tiny: tuple[str, ...], shelf: Path
) -> None:
    server = run(*on_tiny).ready()
    names = []
    with contextlib.suppress(httpx.HTTPError):  # the stream breaks off
        for name, _ in events(server, LONG):
            if name == "output" and "output" not in names:
                docker("kill", server.id)
            names.append(name)
    assert "completed" not in names and server.state()["ExitCode"] == 137
    server.start().ready()
    assert text(post(server, ASK)).strip() == expected(shelf / "tiny")


def test_a_killed_worker_is_unhealthy_until_the_container_is_restarted(
    run: Run, on_tiny: tuple[str, ...], shelf: Path
) -> None:
    server = run(*on_tiny).ready()
    with in_background(lambda: post(server, {**LONG, "n": 5})) as answers:
        server.wait("READY")
        time.sleep(1)
        server.kill(WORKER)
    assert answers[0].status_code != 200 or answers[0].json()["status"] == "failed"
    server.wait("UNHEALTHY", "DEFUNCT", seconds=20)
    with pytest.raises(RuntimeError, match=r"UNHEALTHY|DEFUNCT"):
        server.exec("python", "-m", "alpaca.health", "alive")
    assert post(server, ASK).json()["status"] == "failed"
    server.stop()
    server.start().ready()
    assert text(post(server, ASK)).strip() == expected(shelf / "tiny")


def test_a_full_cache_fails_the_adapter_and_nothing_else(
    run: Run, on_tiny: tuple[str, ...], shelf: Path, tmp_path: Path
) -> None:
    archive = pack(shelf / "adapters" / "first", tmp_path / "packed.zip")
    archive.chmod(0o644)
    full = (
        "--tmpfs",
        "/cache:size=8k",
        *environment(ALPACA_CACHE="/cache", ADAPTER_FOLDERS="/archives:/shelf/adapters"),
    )
    server = run(*on_tiny, *mount(tmp_path, "/archives"), *full).ready()
    error = post(server, {**ASK, "adapter": "packed.zip"}).json()["error"]
    assert "E4006 CacheFull" in error and "/cache" in error
    left = server.python("import os; print([f for _, _, files in os.walk('/cache') for f in files])")
    assert left == "[]"
    first = expected(shelf / "tiny", shelf / "adapters" / "first")
    assert text(post(server, {**ASK, "adapter": "first"})).strip() == first


# --- trainings ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def undisturbed(image: str, shelf: Path) -> bytes:
    """What the job gives where nothing goes wrong."""
    options = (*mount(shelf, "/shelf"), *environment(BASE_MODEL="/shelf/tiny"))
    container = Container(image, *options, mode=TRAIN, command=TRAINS).ready()
    try:
        return weights(post(container, JOB).json())
    finally:
        container.remove()


@pytest.fixture
def trainer(volume: str, run: Run, on_tiny: tuple[str, ...]) -> Container:
    """A server for trainings that keeps its work in a volume."""
    keeps = (*OUTPUT, *mount(volume, "/output", readonly=False))
    return run(*on_tiny, *keeps, mode=TRAIN, command=TRAINS).ready()


def test_a_training_that_was_stopped_goes_on_after_a_restart(trainer: Container, undisturbed: bytes) -> None:
    with in_background(lambda: post(trainer, JOB)) as answers:
        wait_for_log(trainer, "step  100/")
        assert trainer.stop(1) == 137  # it trains on for as long as it may
    assert isinstance(answers[0], httpx.HTTPError) or answers[0].json()["status"] != "succeeded"
    trainer.start().ready()
    body = post(trainer, JOB).json()
    assert weights(body) == undisturbed
    assert "resuming from /output/lora-" in body["logs"] and "step   10/" not in body["logs"]
    again = post(trainer, JOB).json()
    assert "has the adapter of these inputs already" in again["logs"] and weights(again) == undisturbed
    kept = trainer.python("import os; print(sorted(n for _, folders, _ in os.walk('/output') for n in folders))")
    assert "checkpoint" not in kept and ".saving" not in kept


def test_a_client_that_goes_away_cancels_its_training_and_may_ask_again(trainer: Container, undisturbed: bytes) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{trainer.url}/trainings", json={"input": {**JOB, "num_epochs": 10_000}}, timeout=8)
    deadline = time.monotonic() + 20
    while trainer.process(TRAINING) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert weights(post(trainer, JOB).json()) == undisturbed


def test_a_training_process_that_is_killed_fails_alone(trainer: Container, undisturbed: bytes) -> None:
    with in_background(lambda: post(trainer, JOB)) as answers:
        wait_for_log(trainer, "step  100/")
        trainer.kill(TRAINING)
    assert "E5007 TrainingKilled" in answers[0].json()["error"]
    assert trainer.health()["status"] == "READY"
    assert weights(post(trainer, JOB).json()) == undisturbed


def test_a_training_ends_with_its_server(trainer: Container) -> None:
    with in_background(lambda: post(trainer, JOB)):
        wait_for_log(trainer, "step   20/")
        trainer.kill(WORKER)
    trainer.wait("UNHEALTHY", "DEFUNCT", seconds=20)
    deadline = time.monotonic() + 20
    while trainer.process(TRAINING) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_disk_too_small_for_the_training_is_refused_before_it_begins(run: Run, on_tiny: tuple[str, ...]) -> None:
    trainer = run(*on_tiny, *OUTPUT, "--tmpfs", "/output:size=4m", mode=TRAIN, command=TRAINS).ready()
    body = post(trainer, JOB).json()
    assert "E5006 DiskFull" in body["error"] and "/output" in body["error"]
    assert "step" not in body["logs"].partition("disk")[2]


def test_a_disk_that_fills_up_loses_nothing_that_was_saved(
    run: Run, on_tiny: tuple[str, ...], undisturbed: bytes
) -> None:
    trainer = run(*on_tiny, *OUTPUT, "--tmpfs", "/output:size=64m", mode=TRAIN, command=TRAINS).ready()
    fill = "f = open('/output/other', 'wb', 0)\ntry:\n    while True: f.write(bytes(1 << 16))\nexcept OSError: pass"
    with in_background(lambda: post(trainer, JOB)) as answers:
        wait_for_log(trainer, "step  100/")
        trainer.python(fill)
    assert "E5006 DiskFull" in answers[0].json()["error"], answers[0].json()
    assert trainer.health()["status"] == "READY"
    trainer.python("import os; os.unlink('/output/other')")
    body = post(trainer, JOB).json()
    assert weights(body) == undisturbed and "resuming from /output/lora-" in body["logs"]


def test_a_limit_of_memory_that_is_hit_ends_the_training_and_not_the_server(run: Run) -> None:
    trainer = run("--memory", "700m", "--memory-swap", "700m", mode=TRAIN, command=TRAINS).ready()
    body = post(trainer, {**JOB, "num_epochs": 1}).json()
    assert "E5007 TrainingKilled" in body["error"] and "memory" in body["error"], body
    assert trainer.health()["status"] == "READY"
    assert "Nothing of it is kept" in body["error"]
