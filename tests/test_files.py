"""What has its name is whole, whatever happens while it is written; a lock is held alone, while its process lives."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from alpaca.errors import BadSetting, ConversionError
from alpaca.files import claimed, folder_written_aside, free_space, is_locked, locked, written_aside
from tests.conftest import ROOT


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def give_up(waited: float) -> None:
    raise BadSetting("it is taken")


# --- written aside ------------------------------------------------------------------------------------------------
def test_a_file_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")
    with written_aside(target) as aside:
        aside.write_text("new")
        assert target.read_text() == "old" and aside.name.startswith(".saving-")
    assert target.read_text() == "new" and left(tmp_path) == ["a.json"]


def test_a_file_that_fails_leaves_the_older_one_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")
    with pytest.raises(ValueError, match="midway"), written_aside(target) as aside:
        aside.write_text("ne")
        raise ValueError("midway")
    assert target.read_text() == "old" and left(tmp_path) == ["a.json"]


def test_a_folder_replaces_the_older_one_and_is_never_mixed_with_it(tmp_path: Path) -> None:
    target = tmp_path / "base"
    (target / "old").mkdir(parents=True)
    with folder_written_aside(target, ConversionError) as aside:
        (aside / "deep").mkdir()
        (aside / "deep" / "new").write_text("new")
        assert left(target) == ["old"]
    assert left(target) == ["deep"] and left(tmp_path) == ["base"]


def test_a_folder_that_fails_leaves_the_older_one_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "base"
    (target / "old").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt), folder_written_aside(target, ConversionError) as aside:
        (aside / "new").write_text("new")
        raise KeyboardInterrupt
    assert left(target) == ["old"] and left(tmp_path) == ["base"]


def test_what_an_interrupted_run_left_in_a_claimed_folder_is_cleared(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    (folder / "deep" / "er").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    with claimed(folder, ConversionError) as empty:
        assert not left(empty)
    assert (tmp_path / "elsewhere").is_dir()


# --- locks --------------------------------------------------------------------------------------------------------
HOLDER = """
import sys
from pathlib import Path
from alpaca.files import locked
with locked(Path(sys.argv[1]), print):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_lock_is_held_alone_and_ends_with_its_process(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "it"
    if kind == "folder":
        path.mkdir()
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert is_locked(path)
        with pytest.raises(BadSetting, match="it is taken"), locked(path, give_up):
            pass
        holder.kill()
    assert not is_locked(path)
    with locked(path, give_up):
        assert is_locked(path)
    assert path.exists()


def test_who_waits_for_a_lock_is_told_how_long_and_gets_it(tmp_path: Path) -> None:
    path, order = tmp_path / "it", list[str]()
    waits = threading.Event()
    told: list[float] = []

    def wait(waited: float) -> None:
        told.append(waited)
        waits.set()

    def second() -> None:
        with locked(path, wait):
            order.append("second")

    thread = threading.Thread(target=second)
    with locked(path, give_up):
        thread.start()
        assert waits.wait(60)
        order.append("first")
    thread.join()
    assert order == ["first", "second"] and told == sorted(told) and told[0] >= 0


def test_a_lock_whose_file_its_owner_removes_is_still_held_alone(tmp_path: Path) -> None:
    path = tmp_path / "it"
    inside: list[int] = []

    def work() -> None:
        for _ in range(20):
            with locked(path, lambda waited: None):
                inside.append(1)
                assert sum(inside) == 1
                inside.append(-1)
                path.unlink()

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work) for _ in range(4)]:
            done.result()
    assert not left(tmp_path)


def test_a_claimed_folder_is_refused_in_the_callers_own_words(tmp_path: Path) -> None:
    with (
        claimed(tmp_path / "work", ConversionError),
        pytest.raises(BadSetting, match=r"another process is writing .*work; wait for it to end"),
        claimed(tmp_path / "work", BadSetting),
    ):
        pass


# --- room ---------------------------------------------------------------------------------------------------------
def test_the_room_for_a_folder_to_be_made_is_that_of_its_disk(tmp_path: Path) -> None:
    assert free_space(tmp_path / "not" / "yet" / "there") > 0
