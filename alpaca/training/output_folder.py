"""The output folder. What an earlier run left there stays usable until a new one is verified: the new run writes into a
folder in it, and only then takes its place. The earlier one is moved aside whole, and nothing of it is lost."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from alpaca.adapter.card import CARD
from alpaca.progress import Say
from alpaca.training.checkpoints import HIDDEN, NEXT, checkpoints_in
from alpaca.training.full import FullTuning
from alpaca.training.lock import LOCK
from alpaca.training.lora import LoraTuning
from alpaca.training.own_answers import FILE as OWN_ANSWERS
from alpaca.words import tagged

RESULTS = (LoraTuning.parts, FullTuning.parts)  # what may lie in an output folder


def begin_run(output: Path, checkpoint: Path | None, say: Say) -> Path:
    """The folder that a run writes into, made and without another run's leavings: `output`, or a folder in it where
    a result is there, unless the run resumed is its own. `checkpoint`: what is resumed."""
    resumed = checkpoint.resolve().parent if checkpoint is not None else None
    places = {place.resolve(): place for place in (output, output / NEXT)}
    work = places.get(resumed) if resumed is not None else None
    if work is None:
        work = output / NEXT if _has_result(output) else output
    stopped = () if resumed in places else (output / NEXT, *([output] if work == output else []))
    for place in stopped:
        if _has_run(place):
            moved = _set_aside(place, output)
            say(f"{place} held an earlier run: it is now {moved}")
            work.mkdir(parents=True, exist_ok=True)
            _carry_lock(moved, output)
    work.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(work)
    if work != output:
        stays = f"the earlier result in {output} stays until the new one is verified"
        say(tagged("output", f"{stays}; the run is in {work}"))
    return work


def promote(output: Path, say: Say) -> None:
    """Give the finished run in the folder NEXT of `output` the place of the result that is there."""
    place = output.resolve()  # behind a link, which stays as it is
    moved = _set_aside(output, output)
    if place.exists():  # it could not be moved, but what belonged to the run was
        _move(place / NEXT, place)
    else:
        _carry_lock(moved, moved / NEXT)
        os.replace(moved / NEXT, place)
    say(f"{output} held an earlier run: it is now {moved}")


def complete_promotion(output: Path) -> None:
    """Do what is left to do where a process was killed in the middle of `promote`."""
    place = output.resolve()
    moved = list(_numbered(place))
    if moved and (moved[-1] / NEXT / CARD).is_file() and not _has_run(place) and not (place / NEXT).exists():
        _move(moved[-1] / NEXT, place)


def _has_result(folder: Path) -> bool:
    return any((folder / parts[-1]).exists() for parts in RESULTS)


def _has_run(folder: Path) -> bool:
    return _has_result(folder) or bool(checkpoints_in(folder))


def _numbered(output: Path) -> Iterator[Path]:
    """The folders of earlier runs beside `output`, oldest first."""
    for number in count(1):
        if not (moved := output.with_name(f"{output.name}.{number}")).exists():
            return
        yield moved


def _set_aside(run: Path, output: Path) -> Path:
    """Move a run out of the way: its folder to beside the output folder, or, where that can't be (a mount, the folder
    one works in), what belongs to the run into a folder in it. Returns the new place."""
    beside = output if output.name and not output.is_symlink() else output.resolve()
    if not Path.cwd().is_relative_to(run.resolve()):
        moved = beside.with_name(f"{beside.name}.{1 + len(list(_numbered(beside)))}")
        with contextlib.suppress(OSError):
            os.replace(run.resolve(), moved)
            return moved
    moved = next(path for number in count(1) if not (path := output / f"earlier.{number}").exists())
    _move(run, moved)
    return moved


def _move(run: Path, target: Path) -> None:
    """Move what belongs to a run, and nothing else: checkpoints last, so that until then it can be resumed."""
    target.mkdir(exist_ok=True)
    there = [pattern for parts in RESULTS if (run / parts[-1]).exists() for pattern in parts]
    patterns = ["README.md", "report", OWN_ANSWERS, *there, CARD]  # the card last: with it the rest is complete
    found = [path for pattern in patterns for path in sorted(run.glob(pattern))]
    for part in (*found, *checkpoints_in(run)):
        os.replace(part, target / part.name)
    if run.name == NEXT:
        shutil.rmtree(run)


def _carry_lock(source: Path, target: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.replace(source / LOCK, target / LOCK)


def _clear_leftovers(work: Path) -> None:
    """Remove what a killed process had half written."""
    for path in [*work.glob(f"{HIDDEN}*"), *work.glob(".*.partial")]:
        if path.is_file():
            path.unlink()
        shutil.rmtree(path, ignore_errors=True)
