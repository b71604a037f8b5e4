"""Two machines, each with a disk and a cache of its own: one is killed in the middle, and both go on afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from alpaca.adapter.folder import verify_files
from alpaca.errors import PeerLost
from alpaca.training import peers
from tests.conftest import ROOT
from tests.training.runs import adapter_bytes, environment, make_rows, settings, write_rows

CHANGES: dict[str, Any] = {"num_epochs": 6, "batch_size": 2, "eval_steps": 2, "val_set_size": 3, "lora_dropout": 0.1,
                           "replay_ratio": 0.2, "report_budget": 0}  # fmt: skip


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def by_torchrun(rank: int, port: int) -> list[str]:
    return ["-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={rank}", "--nproc_per_node=1",
            "--master_addr=127.0.0.1", f"--master_port={port}", str(ROOT / "finetune.py")]  # fmt: skip


def by_accelerate(rank: int, port: int) -> list[str]:
    return ["-m", "accelerate.commands.launch", f"--config_file={ROOT / 'deploy' / 'fsdp2.yaml'}",
            "--num_processes=2", f"--machine_rank={rank}", "--main_process_ip=127.0.0.1",
            f"--main_process_port={port}", str(ROOT / "tests" / "training" / "fsdp_on_cpu.py")]  # fmt: skip


class Machines:
    """Two of them; each has its folder in `folder`."""

    def __init__(self, folder: Path, start: Any, base: Path, data: Path) -> None:
        self.folder, self.start, self.base, self.data = folder, start, base, data
        self.processes: list[subprocess.Popen[bytes]] = []

    def output(self, rank: int) -> Path:
        return self.folder / str(rank) / "lora"

    def log(self, rank: int) -> str:
        return (self.folder / str(rank) / "log").read_text(encoding="utf-8")

    def begin(self, *more: str) -> None:
        port = free_port()
        self.processes = []
        for rank in (0, 1):
            place = self.folder / str(rank)
            place.mkdir(parents=True, exist_ok=True)
            config = settings(self.base, self.data, self.output(rank), **CHANGES)
            names = ("base_model", "data_path", "output_dir", "quantization", "lora_r", "lora_alpha", *CHANGES)
            given = [f"--{name}={getattr(config, name)}" for name in names]
            command = [sys.executable, *self.start(rank, port), *given, *more]
            with (place / "log").open("wb") as log:
                self.processes.append(
                    subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, start_new_session=True,
                                     env=environment(ALPACA_CACHE=str(place / "cache")))
                )  # fmt: skip

    def end(self) -> list[int]:
        return [process.wait(300) for process in self.processes]

    def kill(self, rank: int) -> None:
        """The launcher and what it started, which has its own session."""
        launcher = self.processes[rank].pid
        children = subprocess.run(["pgrep", "-P", str(launcher)], capture_output=True, text=True).stdout.split()
        for process in [launcher, *map(int, children)]:
            os.kill(process, signal.SIGKILL)


@pytest.mark.long
@pytest.mark.parametrize("start", [by_torchrun, by_accelerate], ids=["torchrun", "fsdp2"])
def test_a_machine_is_killed_the_other_ends_with_a_line_and_both_go_on_as_if_nothing_had_been(
    tiny_base: Path, tmp_path: Path, start: Any
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", make_rows(15))
    whole, killed = (Machines(tmp_path / name, start, tiny_base, data) for name in ("whole", "killed"))
    whole.begin()
    assert whole.end() == [0, 0], whole.log(0)[-3000:] + whole.log(1)[-3000:]
    assert not whole.output(1).exists(), "process 0 alone writes"

    killed.begin()
    deadline = time.monotonic() + 240
    while not (killed.output(0) / "checkpoint-4").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.kill(1)
    assert killed.end()[0] != 0
    (said,) = [line for line in killed.log(0).splitlines() if line.startswith("error: ")]
    assert said.startswith("error: E5009 PeerLost: process 0 on ") and str(killed.output(0) / "checkpoint-") in said
    assert 'finetune.py", line' not in killed.log(0), "a traceback hides the reason"

    killed.begin("--resume_from_checkpoint=auto")
    assert killed.end() == [0, 0], killed.log(0)[-3000:] + killed.log(1)[-3000:]
    assert f"resuming from {killed.output(0)}/checkpoint-" in killed.log(0)
    assert not killed.output(1).exists()
    assert adapter_bytes(killed.output(0)) == adapter_bytes(whole.output(0))
    verify_files(killed.output(0), tiny_base)
    shutil.rmtree(tmp_path / "whole")


LONG = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:5416"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            RuntimeError(f"{LONG}. This is typically caused by a crash.\nmore"),
            "Connection closed by peer [10.0.0.2]:5416",
        ),
        (RuntimeError("[x.cc:1] Timed out waiting 600000ms for recv operation of gloo"), "Timed out waiting 600000ms"),
        (RuntimeError("NCCL error: remote process exited"), "NCCL error: remote process exited"),
    ],
)
def test_a_lost_process_is_explained_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    (tmp_path / "checkpoint-6").mkdir()
    with pytest.raises(PeerLost) as caught, peers.explain_lost(tmp_path):
        raise error
    assert reason in caught.value.message and "\n" not in caught.value.message
    assert f"--resume_from_checkpoint auto (the last checkpoint: {tmp_path / 'checkpoint-6'})" in caught.value.message


def test_other_errors_keep_their_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="shapes"), peers.explain_lost(tmp_path):
        raise RuntimeError("shapes do not match")
