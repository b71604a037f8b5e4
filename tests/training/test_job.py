"""Training jobs: what is kept in OUTPUT_DIR, and the process that a job runs in."""

from __future__ import annotations

import asyncio
import base64
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from alpaca.adapter.archive import pack
from alpaca.adapter.folder import WEIGHTS
from alpaca.errors import (
    AlpacaError,
    BadArchive,
    BadSetting,
    DataError,
    DownloadRefused,
    TrainingBusy,
    TrainingKilled,
)
from alpaca.training import job_process
from alpaca.training.checkpoints import checkpoints_in
from alpaca.training.job import run_job
from alpaca.training.job_inputs import ADAPTER, OUTPUT_DIR, prepare
from tests.conftest import ROOT
from tests.serving.peft_adapters import make_adapter

ROWS = [{"instruction": f"Say {number}.", "output": "hay and grass"} for number in range(6)]


class Upload(type(Path())):  # type: ignore[misc]
    """What Cog makes of an uploaded file: a path that is no text."""


@pytest.fixture
def values(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `prepare` makes of a small job's inputs."""
    monkeypatch.delenv(OUTPUT_DIR, raising=False)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, ROWS)))
    monkeypatch.setenv("BASE_MODEL", str(tiny_base))
    inputs = {"train_data": Upload(rows), "quantization": "fp32", "num_epochs": 2}
    return prepare({**inputs, "batch_size": 2, "val_set_size": 0, "replay_ratio": 0, "report_budget": 0})


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that OUTPUT_DIR names."""
    monkeypatch.setenv(OUTPUT_DIR, str(tmp_path / "output"))
    return tmp_path / "output"


def members(archive: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


# --- what is kept -------------------------------------------------------------------------------------------------
def test_a_job_that_an_earlier_version_kept_is_found_by_its_fingerprint_of_the_base(
    values: dict[str, Any], kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The name of its folder holds that version's fingerprint, which tests/made_before/ tells."""
    made_before = ROOT / "tests" / "made_before"
    values = values | {"base_model": str(made_before / "base")}
    inputs = {name: value for name, value in values.items() if name not in ("data_path", "base_model")}
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode())
    digest.update(hashlib.sha256(Path(values["data_path"]).read_bytes()).digest())
    digest.update(json.loads((made_before / "adapter" / "alpaca.json").read_text())["base_fingerprint"].encode())
    folder = kept / f"lora-{digest.hexdigest()[:12]}"
    shutil.copytree(made_before / "adapter", folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    archive = run_job(values, kept)
    assert archive == folder.with_suffix(".zip")
    assert f"{folder} has the adapter of these inputs already" in capsys.readouterr().out
    assert members(archive)[WEIGHTS] == (made_before / "adapter" / WEIGHTS).read_bytes()


def test_without_a_folder_to_keep_it_a_job_writes_where_it_is_told(values: dict[str, Any], tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    archive = run_job(values, work)
    assert archive.parent == work and WEIGHTS in members(archive)


def test_a_finished_job_stays_without_checkpoints_and_is_not_done_again(
    values: dict[str, Any], kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = run_job(values, tmp_path)
    folder = archive.with_suffix("")
    assert archive.parent == folder.parent == kept and not checkpoints_in(folder)
    before = members(archive)
    capsys.readouterr()
    assert members(run_job(values, tmp_path)) == before
    assert "is not trained again" in (said := capsys.readouterr().out) and "step" not in said


@pytest.mark.long
def test_other_inputs_or_rows_are_another_job(values: dict[str, Any], kept: Path, tmp_path: Path) -> None:
    first = run_job(values, tmp_path)
    second = run_job({**values, "seed": 7}, tmp_path)
    Path(values["data_path"]).write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[1]))
    third = run_job(values, tmp_path)
    assert len({first, second, third}) == 3 and all(archive.is_file() for archive in (first, second, third))


@pytest.mark.long
def test_a_job_whose_checkpoint_is_damaged_begins_anew(
    values: dict[str, Any], kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = run_job(values, tmp_path)
    whole = members(archive)[WEIGHTS]
    folder = archive.with_suffix("")
    (folder / "alpaca.json").unlink()
    (folder / "checkpoint-3").mkdir()
    assert members(run_job(values, tmp_path))[WEIGHTS] == whole
    assert "The job starts over" in capsys.readouterr().out


def test_a_job_that_another_server_trains_is_refused(values: dict[str, Any], kept: Path, tmp_path: Path) -> None:
    name = run_job(values, tmp_path).stem
    with (kept / f".{name}.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BadSetting, match="by another server"):
            run_job(values, tmp_path)


def test_a_folder_that_cannot_be_written_to_is_named(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(OUTPUT_DIR, str(tmp_path / "file" / "output"))
    with pytest.raises(BadSetting, match=r"OUTPUT_DIR is .*file/output, which can't be written to"):
        run_job(values, tmp_path)


# --- the process --------------------------------------------------------------------------------------------------
def inputs_of(values: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**values, "data_path": Upload(values["data_path"]), **more}


def job_processes() -> list[int]:
    """The processes of jobs that this process started."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    fields = [line.split(None, 2) for line in listed.splitlines()]
    return [int(pid) for pid, parent, args in fields if int(parent) == os.getpid() and job_process.__name__ in args]


async def first_process() -> int:
    deadline = time.monotonic() + 60
    while not (found := job_processes()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    return found[0]


@pytest.mark.long
def test_the_archive_and_the_log_of_the_process_come_back(
    values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    archive = asyncio.run(job_process.train_apart(inputs_of(values)))
    assert WEIGHTS in members(archive)
    assert "verified" in capsys.readouterr().out
    assert not (archive.parent / ADAPTER).exists()


def test_an_error_of_the_process_is_the_same_error_here(values: dict[str, Any]) -> None:
    Path(values["data_path"]).write_text("{}")
    with pytest.raises(DataError, match=r"rows\.jsonl row 1"):
        asyncio.run(job_process.train_apart(inputs_of(values)))


def test_a_setting_out_of_range_is_refused_before_a_process_starts(values: dict[str, Any]) -> None:
    with pytest.raises(BadSetting, match="lora_r"):
        asyncio.run(job_process.train_apart(inputs_of(values, lora_r=-1)))
    assert job_processes() == []


@pytest.mark.long
def test_a_killed_process_is_an_error_and_the_next_job_works(values: dict[str, Any]) -> None:
    async def killed() -> None:
        job = asyncio.create_task(job_process.train_apart(inputs_of(values, num_epochs=10_000)))
        os.kill(await first_process(), signal.SIGKILL)
        await job

    with pytest.raises(TrainingKilled, match=r"memory ran out.*OUTPUT_DIR would keep"):
        asyncio.run(killed())
    assert asyncio.run(job_process.train_apart(inputs_of(values))).is_file()


def test_one_job_at_a_time_and_a_cancelled_one_leaves_no_process(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_process, "ENDING_SECONDS", 0.5)

    async def two() -> None:
        job = asyncio.create_task(job_process.train_apart(inputs_of(values, num_epochs=10_000)))
        await first_process()
        with pytest.raises(TrainingBusy):
            await job_process.train_apart(inputs_of(values))
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        assert job_processes() == []

    asyncio.run(two())


@pytest.mark.long
def test_the_process_ends_when_the_server_is_gone(values: dict[str, Any], tmp_path: Path) -> None:
    command = [sys.executable, "-m", job_process.__name__, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps({**values, "num_epochs": 10_000}) + "\n")
        process.stdin.flush()
        for line in process.stdout:
            if line.startswith("step"):
                process.stdin.close()
                break
        assert process.wait(30) != 0
    assert not (tmp_path / job_process.RESULT).exists()


# --- on top of an adapter -----------------------------------------------------------------------------------------
FILLED_IN = {
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_target_modules": "all-linear",
    "use_rslora": False,
    "use_dora": False,
}


@pytest.fixture
def theirs(tiny_base: Path, tmp_path: Path) -> bytes:
    """The archive of an adapter of rank 4 on two kinds of layers."""
    return pack(
        make_adapter(tiny_base, tmp_path / "theirs", template="chat", spread=0.1), tmp_path / "t.zip"
    ).read_bytes()


def in_the_request(archive: bytes) -> str:
    return f"data:application/zip;base64,{base64.b64encode(archive).decode()}"


def test_a_job_goes_on_with_an_adapter_and_is_known_by_its_contents(
    values: dict[str, Any], kept: Path, theirs: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values |= FILLED_IN
    archive = run_job({**values, "adapter": in_the_request(theirs)}, tmp_path / "one")
    config = json.loads(members(archive)["adapter_config.json"])
    assert (config["r"], config["target_modules"]) == (4, ["q_proj", "v_proj"])
    assert json.loads(members(archive)["alpaca.json"])["ancestor"]["name"] == "adapter"
    capsys.readouterr()
    assert run_job({**values, "adapter": in_the_request(theirs)}, tmp_path / "two") == archive
    assert "is not trained again" in capsys.readouterr().out


def test_a_shape_that_contradicts_it_is_refused(values: dict[str, Any], theirs: bytes, tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="lora_r is 8, and adapter has 4"):
        run_job({**values, **FILLED_IN, "lora_r": 8, "adapter": in_the_request(theirs)}, tmp_path)


@pytest.mark.parametrize(
    ("url", "error", "says"),
    [
        ("https://127.0.0.1/a.zip", DownloadRefused, "127.0.0.1 is not in the public internet"),
        ("http://example.com/a.zip", DownloadRefused, "only https is followed"),
        ("data:application/zip;base64,%%%%", BadSetting, "no base64|not base64"),
        (
            f"data:application/zip;base64,{base64.b64encode(b'no archive').decode()}",
            BadArchive,
            "neither a zip nor a tar",
        ),
    ],
)
def test_what_is_brought_is_fetched_and_unpacked_as_for_a_prediction(
    url: str, error: type[AlpacaError], says: str, values: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        run_job({**values, "adapter": url}, tmp_path)
