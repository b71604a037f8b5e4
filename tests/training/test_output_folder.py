"""An adapter that is there stays usable until a new one is verified, and nothing of it is lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alpaca.adapter.folder import verify_files
from alpaca.errors import BadSetting, TrainingBusy
from alpaca.training.checkpoints import NEXT
from alpaca.training.lock import LOCK, alone_in
from tests.conftest import ROOT, all_but_long
from tests.training.runs import adapter_bytes, environment, kill_at, leftovers, settings, train, tree

AGAIN: dict[str, Any] = {"seed": 7, "lora_r": 64, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def trained(tiny_base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a run with its adapter, what another run gives that was never stopped)."""
    folder = tmp_path_factory.mktemp("trained")
    train(settings(tiny_base, rows, folder / "first"))
    train(settings(tiny_base, rows, folder / "second", **AGAIN))
    return folder / "first", folder / "second"


@pytest.fixture
def out(trained: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the first run's folder, with a file of a person's in it."""
    folder = Path(shutil.copytree(trained[0], tmp_path / "work" / "out"))
    (folder / "notes.txt").write_text("mine")
    return folder


# --- until the new adapter is verified ----------------------------------------------------------------------------
MOMENTS: dict[str, Callable[[Path], bool]] = {
    "before its first checkpoint": lambda out: (out / NEXT).is_dir(),
    "after a checkpoint": lambda out: (out / NEXT / "checkpoint-4").is_dir(),
    "while the new adapter is put in place": lambda out: (out / NEXT / "adapter_model.safetensors").is_file(),
}


@pytest.mark.parametrize("moment", all_but_long(MOMENTS, "while the new adapter is put in place"))
def test_a_run_that_is_stopped_leaves_the_earlier_adapter_and_is_resumed_beside_it(
    tiny_base: Path, rows: Path, out: Path, trained: tuple[Path, Path], moment: str
) -> None:
    before = tree(out)
    again = settings(tiny_base, rows, out, **AGAIN)
    assert kill_at(again, MOMENTS[moment]) == -signal.SIGKILL
    assert {name: content for name, content in tree(out).items() if not name.startswith((NEXT, LOCK))} == before
    verify_files(out, tiny_base)
    lines = train(settings(tiny_base, rows, out, **AGAIN, resume_from_checkpoint="auto"))
    resumed = any(line.startswith(f"resuming from {out / NEXT / 'checkpoint-'}") for line in lines)
    assert resumed == (moment != "before its first checkpoint")
    assert adapter_bytes(out) == adapter_bytes(trained[1])
    assert tree(out.with_name("out.1")) == before
    assert not (out / NEXT).exists() and leftovers(out) == [] and (out / "alpaca.json").is_file()


def test_a_run_that_is_killed_between_the_two_renames_is_completed_by_the_next(
    tiny_base: Path, rows: Path, out: Path, trained: tuple[Path, Path]
) -> None:
    before = tree(out)
    shutil.copytree(trained[1], out / NEXT)
    out.rename(out.with_name("out.1"))
    train(settings(tiny_base, rows, out, **AGAIN, resume_from_checkpoint="auto"))
    assert adapter_bytes(out) == adapter_bytes(trained[1])
    assert tree(out.with_name("out.1")) == before
    assert not out.with_name("out.2").exists()


def test_a_stopped_run_that_is_not_resumed_is_set_aside_too(
    tiny_base: Path, rows: Path, out: Path, trained: tuple[Path, Path]
) -> None:
    before = tree(out)
    assert kill_at(settings(tiny_base, rows, out, **AGAIN), MOMENTS["after a checkpoint"]) == -signal.SIGKILL
    (out / LOCK).unlink()
    stopped = {name.removeprefix(f"{NEXT}/"): text for name, text in tree(out).items() if name.startswith(NEXT)}
    train(settings(tiny_base, rows, out, **AGAIN))
    assert tree(out.with_name("out.1")) == stopped
    assert tree(out.with_name("out.2")) == before
    assert adapter_bytes(out) == adapter_bytes(trained[1])


# --- folders that can't be moved ----------------------------------------------------------------------------------
def test_the_folder_one_works_in_stays_and_so_does_what_is_no_run_s(
    tiny_base: Path, rows: Path, out: Path, trained: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(out)
    del before["notes.txt"]
    monkeypatch.chdir(out)
    train(settings(tiny_base, rows, Path("."), **AGAIN))
    assert Path.cwd().samefile(out) and (out / "notes.txt").read_text() == "mine"
    assert adapter_bytes(out) == adapter_bytes(trained[1])
    assert tree(out / "earlier.1") == before
    assert not (out / NEXT).exists() and not out.with_name("out.1").exists() and leftovers(out) == []
    train(settings(tiny_base, rows, Path("."), seed=8))
    assert adapter_bytes(out / "earlier.2") == adapter_bytes(trained[1]) != adapter_bytes(out)


def test_a_link_stays_a_link_and_the_earlier_run_stays_where_it_points(
    tiny_base: Path, rows: Path, out: Path, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    before = tree(out)
    link = tmp_path / "link"
    link.symlink_to(out)
    train(settings(tiny_base, rows, link, **AGAIN))
    assert link.is_symlink() and link.resolve() == out
    assert adapter_bytes(link) == adapter_bytes(trained[1])
    assert tree(out.with_name("out.1")) == before


def test_a_readme_that_is_no_adapter_s_is_never_replaced(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# My project")
    with pytest.raises(BadSetting, match=r"holds a README\.md that is no adapter's"):
        train(settings(tiny_base, rows, tmp_path))
    assert tree(tmp_path) == {"README.md": b"# My project"}


# --- two at once --------------------------------------------------------------------------------------------------
def test_a_second_run_into_the_same_folder_is_refused_and_the_first_is_named(
    tiny_base: Path, rows: Path, out: Path
) -> None:
    before = tree(out)
    named = rf"^E5008 .*and process {os.getpid()} on .* since .* trains into it"
    with alone_in(out), pytest.raises(TrainingBusy, match=named):
        train(settings(tiny_base, rows, out))
    assert tree(out) == before


def test_of_two_that_begin_at_once_one_is_refused(out: Path) -> None:
    with alone_in(out), pytest.raises(TrainingBusy), alone_in(out):
        pass
    with alone_in(out):
        pass
    assert not (out / LOCK).exists()


def test_a_run_that_is_asked_to_end_says_so_in_one_line_and_leaves_no_lock(
    tiny_base: Path, rows: Path, tmp_path: Path
) -> None:
    options = f"""--base_model {tiny_base} --data_path {rows} --output_dir {tmp_path / "out"} --quantization fp32
        --num_epochs 1000 --replay_ratio 0 --report_budget 0 --eval_steps 1""".split()
    with subprocess.Popen(
        [sys.executable, str(ROOT / "finetune.py"), *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=environment(),
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        next(line for line in process.stdout if line.startswith("step    2/"))
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert said.strip() == "ended by SIGTERM"
    assert not (tmp_path / "out" / LOCK).exists() and list((tmp_path / "out").glob("checkpoint-*"))
