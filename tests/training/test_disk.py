"""Room on the disk: a run that can't fit is refused, one that meets the end of the disk says so."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors import safe_open

from alpaca.adapter.folder import WEIGHTS
from alpaca.errors import BadSetting, DiskFull
from alpaca.training.checkpoints import checkpoints_in
from alpaca.training.disk import BESIDES, check_room, explain_disk, needed
from tests.training.runs import make_rows, settings, train, write_rows


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def nearly_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with a million bytes left."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 10**6, 10**6))


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_run_writes_no_more_than_was_said_and_not_much_less(tiny_base: Path, tmp_path: Path) -> None:
    output = tmp_path / "lora"
    rows = write_rows(tmp_path / "rows.jsonl", make_rows(24))
    lines = train(settings(tiny_base, rows, output, lora_r=256, lora_alpha=512))
    (said,) = [line for line in lines if line.startswith("disk")]
    with safe_open(output / WEIGHTS, framework="pt") as file:
        parameters = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    checkpoint = max(size(folder) for folder in checkpoints_in(output))
    assert f"up to {needed(parameters) / 1e9:.2f} GB" in said
    assert size(output) + checkpoint < needed(parameters)  # one more while it is written
    assert size(output) + checkpoint > 0.7 * (needed(parameters) - BESIDES)


LORA: Any = {"noun": "adapter", "smaller": "lower --lora_r"}


def test_a_disk_too_small_is_refused_with_both_numbers(nearly_full: None, tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match=r"lora: the run writes up to 0\.06 GB .* and 0\.00 GB are free"):
        check_room(tmp_path / "lora", 1_000_000, **LORA, resumes=False)


def test_what_a_resumed_run_wrote_already_counts(nearly_full: None, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "optimizer.pt").write_bytes(bytes(60_000_000))
    check_room(tmp_path, 1_000_000, **LORA, resumes=True)
    with pytest.raises(DiskFull):
        check_room(tmp_path, 1_000_000, **LORA, resumes=False)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), OSError(errno.EDQUOT, "Quota exceeded")])
def test_a_full_disk_says_how_to_go_on(tmp_path: Path, error: OSError) -> None:
    with pytest.raises(DiskFull, match=r"the disk is full .*--resume_from_checkpoint auto"), explain_disk(tmp_path):
        raise error


def test_a_library_that_does_not_say_so_is_understood(nearly_full: None, tmp_path: Path) -> None:
    with pytest.raises(DiskFull), explain_disk(tmp_path):
        raise RuntimeError("file write failed")


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), BadSetting("lora_r is 0"), OSError(errno.EIO, "?")])
def test_other_errors_pass(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, explain_disk(tmp_path):
        raise error
    assert caught.value is error
