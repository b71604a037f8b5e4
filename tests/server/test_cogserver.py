"""The commands around Cog's server: the schema they write, one answer from the shell, and no process left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from alpaca.cogserver.entry_points import write_schema
from alpaca.cogserver.schema import PREDICT, TRAIN, declares_streaming, parse_inputs
from alpaca.cogserver.server import Server, free_port
from alpaca.errors import AlpacaError, ConflictingInputs, OutOfRange, ServerFailed
from tests.conftest import ROOT
from tests.server.over_http import environment

PREDICTOR = """
from typing import Optional
from cog import BaseRunner, ConcatenateIterator, Input, streaming

class Runner(BaseRunner):
    def setup(self) -> None: ...

    {decorator}
    def run(self, word: str, times: int = Input(default=2, ge=1, le=5),
            tone: str = Input(default="a", choices=["a", "b"]),
            rate: float = Input(default=0.5, ge=0, le=1.5), seed: Optional[int] = Input(default=None, deprecated=True),
            name: str = Input(default="x", min_length=1, max_length=9, regex="[a-z]+", description="Whose.")
            ) -> ConcatenateIterator[str]:
        for _ in range(times):
            print("said", word)
            yield word + tone
        self.record_metric("words", times)
"""
TRAINER = """
from cog import BaseModel, Input, Path

class TrainingOutput(BaseModel):
    weights: Path

def train(train_data: Path, epochs: int = Input(default=3, ge=1)) -> TrainingOutput:
    out = Path("weights.txt")
    out.write_text(f"{train_data.read_text()} {epochs}")
    return TrainingOutput(weights=out)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "predict.py").write_text(PREDICTOR.format(decorator="@streaming"))
    (tmp_path / "train.py").write_text(TRAINER)
    return tmp_path


# --- the schema ---------------------------------------------------------------------------------------------------
def test_the_schema_says_what_the_signatures_say(project: Path) -> None:
    schema = write_schema(project)
    assert json.loads((project / ".cog" / "openapi_schema.json").read_text()) == schema
    assert [path.name for path in (project / ".cog").iterdir()] == ["openapi_schema.json"]
    inputs = schema["components"]["schemas"]["Input"]
    fields = inputs["properties"]
    assert inputs["required"] == ["word"]
    assert (fields["times"]["minimum"], fields["times"]["maximum"], fields["times"]["default"]) == (1, 5, 2)
    assert (fields["rate"]["type"], fields["rate"]["maximum"]) == ("number", 1.5)
    assert fields["tone"]["allOf"] == [{"$ref": "#/components/schemas/tone"}]
    assert schema["components"]["schemas"]["tone"]["enum"] == ["a", "b"]
    assert fields["seed"]["nullable"] and fields["seed"]["deprecated"]
    assert (fields["name"]["minLength"], fields["name"]["maxLength"], fields["name"]["pattern"]) == (1, 9, "[a-z]+")
    assert fields["name"]["description"] == "Whose."
    assert [fields[name]["x-order"] for name in fields] == list(range(6))
    assert schema["components"]["schemas"]["TrainingInput"]["required"] == ["train_data"]
    assert schema["paths"]["/predictions"]["post"]["x-cog-streaming"] is True
    assert "x-cog-streaming" not in schema["paths"]["/trainings"]["post"]


def test_streaming_is_only_declared_where_the_source_does(project: Path) -> None:
    assert declares_streaming(project / "predict.py", "Runner")
    (project / "predict.py").write_text(PREDICTOR.format(decorator=""))
    assert not declares_streaming(project / "predict.py", "Runner")
    assert "x-cog-streaming" not in write_schema(project)["paths"]["/predictions"]["post"]


def test_the_projects_own_schema_has_every_input_described() -> None:
    fields = write_schema(ROOT)["components"]["schemas"]["Input"]["properties"]
    assert {"prompt", "messages", "max_tokens", "seed", "adapter_scale"} <= fields.keys()
    assert all(field.get("description") for field in fields.values())
    older = {name for name, field in fields.items() if field.get("deprecated")}
    assert older == {"total_tokens", "max_new_tokens", "min_new_tokens", "replicate_weights"}


def test_the_bounds_of_the_schema_are_those_of_the_request() -> None:
    from alpaca.serving.inputs import OLDER_NAMES
    from alpaca.serving.request import BOUNDS

    fields = write_schema(ROOT)["components"]["schemas"]["Input"]["properties"]
    for name, (low, high) in BOUNDS.items():
        assert (fields[name]["minimum"], fields[name]["maximum"]) == (low, high), name
    for older, name in OLDER_NAMES.items():
        if name not in BOUNDS:
            continue
        assert (fields[older]["minimum"], fields[older]["maximum"]) == BOUNDS[name], older


def test_the_defaults_of_the_schema_are_those_of_the_request() -> None:
    from alpaca.serving.inputs import DEFAULTS

    fields = write_schema(ROOT)["components"]["schemas"]["Input"]["properties"]
    for name in DEFAULTS.keys() & fields.keys() - {"stop_sequences", "prompt_template"}:
        assert fields[name].get("default") == DEFAULTS[name], name


def test_a_folder_without_entry_points_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerFailed, match=r"predict\.py"):
        write_schema(tmp_path)


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        (["word=a=b"], {"word": "a=b"}),
        (["times=3", "rate=1"], {"times": 3, "rate": 1}),
        (["word=5", "name= 早 "], {"word": "5", "name": " 早 "}),
    ],
)
def test_inputs_get_the_types_of_the_schema(project: Path, given: list[str], parsed: dict[str, Any]) -> None:
    assert parse_inputs(given, write_schema(project)["components"]["schemas"]) == parsed


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        (["words=1"], OutOfRange, "no input 'words'. Inputs: word, times"),
        (["word"], OutOfRange, "not name=value"),
        (["times=many"], OutOfRange, "type integer"),
        (["word=a", "word=b"], ConflictingInputs, "twice"),
    ],
)
def test_inputs_that_are_none_are_refused(project: Path, given: list[str], error: type[AlpacaError], says: str) -> None:
    with pytest.raises(error, match=says):
        parse_inputs(given, write_schema(project)["components"]["schemas"])


# --- the server and the commands ----------------------------------------------------------------------------------
def family(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def all_gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=15)[1]


@pytest.mark.server
def test_both_modes_run_from_one_schema(project: Path) -> None:
    with Server(PREDICT, project=project) as predict, Server(TRAIN, project=project) as train:
        processes = [*family(predict.process.pid), *family(train.process.pid)]
        predict.wait_ready(60)
        train.wait_ready(60)
        said = httpx.post(predict.url + "/predictions", json={"input": {"word": "hay"}}, timeout=30).json()
        assert (said["output"], said["logs"]) == (["haya", "haya"], "said hay\nsaid hay\n")
        refused = httpx.post(predict.url + "/predictions", json={"input": {"word": "hay", "tone": "c"}}, timeout=30)
        assert refused.status_code == 422
        data = {"train_data": "data:text/plain;base64,aGF5", "epochs": 4}
        trained = httpx.post(train.url + "/trainings", json={"input": data}, timeout=30).json()
        assert trained["status"] == "succeeded" and trained["output"]["weights"].startswith("data:")
        refused = httpx.post(train.url + "/trainings", json={"input": {"epochs": 0}}, timeout=30)
        assert refused.status_code == 422
        processes += [*family(predict.process.pid), *family(train.process.pid)]
    assert all_gone(processes)


@pytest.mark.server
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_server_and_its_worker(project: Path, signal_number: signal.Signals) -> None:
    port = free_port()
    command = [sys.executable, "-m", "alpaca.cogserver", "serve", "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=project, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until_ready(port)
            workers = family(process.pid)
            assert workers
            process.send_signal(signal_number)
            process.wait(15)
        finally:
            process.kill()
    assert all_gone(workers)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--port", "{taken}"], "port {taken} is in use"),
        (["--port", "99999"], "port 99999 is not a port"),
        (["--host", "no-such-host.invalid"], "nothing can listen on no-such-host.invalid"),
    ],
)
def test_a_port_that_can_not_be_had_is_said_before_anything_starts(given: list[str], said: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        command = [sys.executable, "-m", "alpaca.cogserver", "serve", *(text.format(taken=taken) for text in given)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.strip().startswith("error: E1103 ServerFailed: " + said.format(taken=taken))


def wait_until_ready(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health-check").json()["status"] == "READY":
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    pytest.fail("the server was not ready after a minute")


def predict(*inputs: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    given = [argument for text in inputs for argument in ("-i", text)]
    command = [sys.executable, "-m", "alpaca.cogserver", "predict", *given]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=180)


@pytest.mark.server
def test_predict_answers_in_the_shell(tiny_base: Path, tmp_path: Path) -> None:
    done = predict("prompt=hay", "max_tokens=8", "temperature=0", env=environment(tiny_base, tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "output_token_count 8" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.server
@pytest.mark.parametrize(
    ("inputs", "more", "status", "says"),
    [
        (["prompt="], {}, 1, "E1001 EmptyPrompt"),
        (["prompt=a", "max_tokens=0"], {}, 2, "max_tokens: 0 is less than the minimum of 1"),
        (["promt=a"], {}, 2, "no input 'promt'"),
        (["prompt=a"], {"COG_WEIGHTS": "/no/such/adapter"}, 2, "E4001 AdapterNotFound"),
        (["prompt=a"], {"BASE_MODEL": "/no/such/base"}, 2, "E3001 BaseNotFound"),
    ],
    ids=["empty", "schema", "name", "adapter", "base"],
)
def test_predict_says_what_went_wrong(
    tiny_base: Path, tmp_path: Path, inputs: list[str], more: dict[str, str], status: int, says: str
) -> None:
    done = predict(*inputs, env=environment(tiny_base, tmp_path, **more))
    assert done.returncode == status, done.stderr
    assert says in done.stderr and "Traceback" not in done.stderr
    assert done.stdout.strip() == ""


@pytest.mark.server
def test_an_interrupted_predict_leaves_no_server(tiny_base: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "alpaca.cogserver", "predict", "-i", "prompt=a", "-i", "max_tokens=900"]
    env = {**os.environ, **environment(tiny_base, tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while len(started := family(process.pid)) < 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    assert all_gone(started)
