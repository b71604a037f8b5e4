"""Checkpoints: what a run can be resumed from. Each is written aside and renamed, so there are no half ones."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from alpaca.adapter.folder import WEIGHTS
from alpaca.base.earlier import is_known_as
from alpaca.data.split import EXACT, NEAR
from alpaca.errors import BadCheckpoint

HIDDEN = ".saving-"  # how the names of what is written aside begin
NEXT = "next-run"  # the folder of what is trained while the output folder holds an adapter
RUN_FILE = "run.json"  # data and settings of the run
STATE = "trainer_state.json"
# What was so in every run before there was a setting for it.
SINCE: dict[str, Any] = {"split": EXACT, "replay_kl": 0.0, "finetuning_type": "lora", "ancestor": None}
NEEDED = ("optimizer.pt", "scheduler.pt", STATE, RUN_FILE)


# --- writing ------------------------------------------------------------------------------------------------------
def name_of(step: int) -> str:
    """The name of the checkpoint after `step` steps."""
    return f"checkpoint-{step}"


def aside(output: Path, step: int) -> Path:
    """The hidden folder in which the checkpoint of `step` is written, under its name."""
    return output / f"{HIDDEN}{name_of(step)}"


def written(output: Path, step: int) -> Path:
    """The checkpoint of `step` before it is put in place."""
    return aside(output, step) / name_of(step)


def begin(output: Path, step: int) -> None:
    """Remove what a killed process had half written of this checkpoint."""
    shutil.rmtree(aside(output, step), ignore_errors=True)


def finish(output: Path, step: int, *, best: str | None, keep: int) -> None:
    """Give a whole checkpoint its name, and remove older ones until `keep` are left, the `best` one among them."""
    from transformers.trainer_utils import rotate_checkpoints

    place = output / name_of(step)
    if place.exists():  # the run was resumed from an earlier checkpoint by name
        os.replace(place, aside(output, step) / "earlier")
    os.replace(written(output, step), place)
    shutil.rmtree(aside(output, step), ignore_errors=True)
    kept = str(output / Path(best).name) if best else None  # by name: the folder may have been moved since
    rotate_checkpoints(output_dir=str(output), save_total_limit=keep, best_model_checkpoint=kept, use_mtime=False)


# --- resuming -----------------------------------------------------------------------------------------------------
def latest_run(output: Path) -> Path:
    """Where the run is that was begun last in an output folder, and so the checkpoint to resume."""
    return output / NEXT if (output / NEXT).is_dir() else output


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest step first. Half-written ones have other names and are not among them."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def find_checkpoint(
    asked: str, output_dir: Path, identity: dict[str, Any], base: Path, weights: str = WEIGHTS
) -> Path | None:
    """The checkpoint to resume from; None for a fresh start. `weights`: its file of what is trained.

    `asked` is empty, a folder, or auto/true (the last one in `output_dir`, if there is one). Raises BadCheckpoint for a
    folder that can't be resumed exactly, or whose run had other data or settings; the message lists the differences.
    """
    checkpoint = _asked(asked, output_dir)
    if checkpoint is None:
        return None
    lacking = [name for name in (weights, *NEEDED) if not (checkpoint / name).is_file()]
    if weights in lacking and RUN_FILE not in lacking and _kind(SINCE | read_run(checkpoint)) != _kind(identity):
        lacking.remove(weights)  # it trained something else, which is said below
    if not any(checkpoint.glob("rng_state*.pth")):  # one for each process
        lacking.append("rng_state.pth")
    if lacking:
        there = ", ".join(path.name for path in checkpoints_in(output_dir)) or "none"
        raise BadCheckpoint(
            f"{checkpoint} lacks {', '.join(lacking)}: training can't be resumed exactly from it. "
            f"Checkpoints in {output_dir}: {there}"
        )
    run = SINCE | read_run(checkpoint)
    now = json.loads(json.dumps(identity))
    differing = [name for name in now if run.get(name) != now[name]]
    if "base" in differing and is_known_as(base, str(run.get("base"))):  # an earlier version's fingerprint of it
        differing.remove("base")
    if differing:
        listed = "; ".join(f"{name}: {_short(run.get(name))} then, {_short(now[name])} now" for name in differing)
        raise BadCheckpoint(
            f"{checkpoint} is from another run ({listed}). Use its settings, or omit --resume_from_checkpoint"
        )
    return checkpoint


def split_rule(asked: str, output_dir: Path) -> str:
    """By which rule the rows of the run that is to be resumed were split; today's for a fresh one. What can't be
    resumed is refused later, by find_checkpoint."""
    checkpoint = _asked(asked, output_dir)
    try:
        return NEAR if checkpoint is None else str((SINCE | read_run(checkpoint))["split"])
    except (OSError, BadCheckpoint):
        return NEAR


def _asked(asked: str, output_dir: Path) -> Path | None:
    if asked.lower() not in ("auto", "true"):
        return Path(asked) if asked else None
    found = checkpoints_in(output_dir)
    return found[-1] if found else None


def read_run(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of its run. Raises BadCheckpoint."""
    try:
        run = json.loads((checkpoint / RUN_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadCheckpoint(f"{checkpoint / RUN_FILE} is not valid JSON: {error}") from None
    if not isinstance(run, dict):
        raise BadCheckpoint(f"{checkpoint / RUN_FILE} holds a {type(run).__name__}, not an object")
    return run


def _kind(run: dict[str, Any]) -> Any:
    return run.get("finetuning_type")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "…"
