"""The image from outside, over HTTP: from start to READY, answers, streams, many at once, bad input, training."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from alpaca.cogserver.schema import TRAIN
from tests.container.conftest import FP32, Run
from tests.container.container import TRAINS, Container, environment, gateway, mount
from tests.server.over_http import events, post, post_together
from tests.server.test_weights import file_server

pytestmark = pytest.mark.container
ASK = {"prompt": "hay", "temperature": 0, "max_tokens": 24}
QUESTION, ANSWER = "What does the alpaca eat?", "hay and grass in the field"
ROWS = [{"instruction": QUESTION, "output": ANSWER}] * 12


def text(response: Any) -> str:
    body = response.json()
    assert response.status_code == 200 and body["status"] == "succeeded", body
    return "".join(body["output"])


def expected(base: Path, adapter: Path | None = None, **inputs: Any) -> str:
    """What the engine answers in this process, outside of any container."""
    from alpaca.serving.inputs import request_from_inputs
    from alpaca.serving.loading import load_base, open_engine
    from alpaca.serving.together import answers

    engine = open_engine(load_base(str(base), "fp32"), adapter)
    try:
        return answers(engine, [request_from_inputs(**{**ASK, **inputs})])[0].text
    finally:
        engine.close()


def rows_url(rows: list[dict[str, str]]) -> str:
    lines = "\n".join(json.dumps(row) for row in rows)
    return f"data:application/jsonl;base64,{base64.b64encode(lines.encode()).decode()}"


# --- the image as it is ---------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def real(image: str) -> Any:
    """The image started with nothing but a precision: the base is the one inside."""
    container = Container(image, *FP32)
    yield container
    container.remove()


def test_the_server_is_up_before_its_model_and_says_so(real: Container) -> None:
    assert real.wait("STARTING", "READY", seconds=10)["status"] == "STARTING"
    assert post(real, ASK).status_code == 503
    health = real.wait("READY")
    assert health["setup"]["status"] == "succeeded"


def test_the_log_tells_each_phase_with_its_time(real: Container) -> None:
    real.ready()
    said = "\n".join(real.messages())
    phases = ["startup: libraries", "base: smollm2-135m-instruct", "startup: base ", "adapter: none"]
    phases += ["keys and values: ", "warm-up: ", "startup: ready after "]
    places = [said.index(phase) for phase in phases]
    assert places == sorted(places)


def test_a_prediction_is_that_of_the_same_code_outside(real: Container, smollm2: Path) -> None:
    asked = {"prompt": "Name three animals.", "temperature": 0, "max_tokens": 16}
    assert text(post(real.ready(), asked)).strip() == expected(smollm2, **asked)


def test_text_streams_through_the_published_port(real: Container) -> None:
    names = [name for name, _ in events(real.ready(), {**ASK, "min_tokens": 12})]
    assert names[0] == "start" and names[-1] == "completed" and names.count("output") > 5


def test_bad_input_is_refused_and_the_server_goes_on(real: Container) -> None:
    assert post(real.ready(), {**ASK, "max_tokens": 0}).status_code == 422
    assert "E1001 EmptyPrompt" in post(real, {"prompt": " "}).json()["error"]
    assert "E4001 AdapterNotFound" in post(real, {**ASK, "adapter": "/etc"}).json()["error"]
    assert text(post(real, ASK))


def test_the_health_command_agrees_with_the_body(real: Container) -> None:
    real.ready()
    for question in ("started", "ready", "alive"):
        assert "READY" in real.exec("python", "-m", "alpaca.health", question)


def test_finetune_py_works_in_the_image_as_cog_exec_starts_it(run: Run, image: str) -> None:
    from tests.container.container import docker

    said = docker("run", "--rm", "--network", "none", image, "python", "finetune.py", "--dry_run")
    assert "245 rows read, 245 kept" in said and "dry run: nothing was trained" in said


# --- adapters and bases from outside --------------------------------------------------------------------------------
def test_mixed_adapters_at_once_from_a_mounted_folder(run: Run, on_tiny: tuple[str, ...], shelf: Path) -> None:
    server = run(*on_tiny).ready()
    names = ["first", "second", "none", "first", "second", "none", "first", "second"]
    said = [text(r).strip() for r in post_together(server, [{**ASK, "adapter": name} for name in names])]
    alone = {"none": expected(shelf / "tiny")}
    alone |= {name: expected(shelf / "tiny", shelf / "adapters" / name) for name in ("first", "second")}
    assert said == [alone[name] for name in names]
    assert len(set(said)) == 3


def test_training_fetches_its_rows_by_url_and_takes_no_path(run: Run, on_tiny: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"instruction": "Say hay."}))
    trainer = run(*on_tiny, mode=TRAIN, command=TRAINS).ready()
    with file_server(tmp_path, gateway()) as host:
        fetched = post(trainer, {"train_data": f"http://{host}/rows.jsonl"}).json()["error"]
    assert "E2002 BadRows" in fetched or "E2003 NoRowsLeft" in fetched
    for path in ("/src/data/alpacas.jsonl", "file:///src/data/alpacas.jsonl"):
        assert post(trainer, {"train_data": path}).json()["status"] == "failed"


def test_training_makes_an_archive_that_a_second_container_serves(
    run: Run, on_tiny: tuple[str, ...], tmp_path: Path
) -> None:
    trainer = run(*on_tiny, mode=TRAIN, command=TRAINS).ready()
    settings = {"quantization": "fp32", "num_epochs": 40, "batch_size": 4, "val_set_size": 0, "learning_rate": 0.01}
    asked = {"train_data": rows_url(ROWS), "replay_ratio": 0, "report_budget": 0, **settings}
    body = post(trainer, asked).json()
    assert body["status"] == "succeeded", body
    archive = tmp_path / "weights.zip"
    archive.write_bytes(base64.b64decode(body["output"]["weights"].partition("base64,")[2]))
    archive.chmod(0o644)
    server = run(*on_tiny, *mount(archive, "/weights.zip"), *environment(COG_WEIGHTS="/weights.zip")).ready()
    asked = {"prompt": QUESTION, "temperature": 0, "max_tokens": 32}
    assert text(post(server, asked)).strip() == ANSWER
    assert text(post(server, {**asked, "adapter": "none"})).strip() != ANSWER
