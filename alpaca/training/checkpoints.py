"""Where a run can go on from, and what becomes of an earlier run's folder."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from alpaca.adapter.folder import WEIGHTS
from alpaca.adapter.lora_config import CONFIG
from alpaca.base.earlier import is_known_as
from alpaca.errors import BadCheckpoint
from alpaca.training.trainer import RUN_FILE

HIDDEN = ".saving-"  # how the names of what is written aside begin
NEEDED = (WEIGHTS, "optimizer.pt", "scheduler.pt", "trainer_state.json", RUN_FILE)


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest step first. Half-written ones have other names and are not among them."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def find_checkpoint(asked: str, output_dir: Path, identity: dict[str, Any], base: Path) -> Path | None:
    """The checkpoint to go on from: None for a fresh start.

    `asked` is empty, a folder, or auto/true (the last one in `output_dir`, if there is one). Raises BadCheckpoint for a
    folder that can't be resumed exactly, or whose run had other data or settings; the message lists the differences.
    """
    if not asked:
        return None
    if asked.lower() in ("auto", "true"):
        found = checkpoints_in(output_dir)
        if not found:
            return None
        checkpoint = found[-1]
    else:
        checkpoint = Path(asked)
    lacking = [name for name in NEEDED if not (checkpoint / name).is_file()]
    if not any(checkpoint.glob("rng_state*.pth")):  # one for each process
        lacking.append("rng_state.pth")
    if lacking:
        there = ", ".join(path.name for path in checkpoints_in(output_dir)) or "none"
        raise BadCheckpoint(
            f"{checkpoint} lacks {', '.join(lacking)}: training can't go on exactly from it. "
            f"Checkpoints in {output_dir}: {there}"
        )
    run = read_run(checkpoint)
    now = json.loads(json.dumps(identity))
    differing = [name for name in now if run.get(name) != now[name]]
    if "base" in differing and is_known_as(base, str(run.get("base"))):  # an earlier version's fingerprint of it
        differing.remove("base")
    if differing:
        listed = "; ".join(f"{name}: {_short(run.get(name))} then, {_short(now[name])} now" for name in differing)
        raise BadCheckpoint(
            f"{checkpoint} is from another run ({listed}). Use its settings, or leave --resume_from_checkpoint out"
        )
    return checkpoint


def read_run(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of its run. Raises BadCheckpoint."""
    try:
        run = json.loads((checkpoint / RUN_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadCheckpoint(f"{checkpoint / RUN_FILE} is not valid JSON: {error}") from None
    if not isinstance(run, dict):
        raise BadCheckpoint(f"{checkpoint / RUN_FILE} holds a {type(run).__name__}, not an object")
    return run


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "…"


def set_aside(output_dir: Path) -> Path | None:
    """Move an earlier run's folder out of the way, so that nothing of it is lost or mixed; return its new name."""
    if not (output_dir / CONFIG).exists() and not checkpoints_in(output_dir):
        return None
    number = 1
    while (moved := output_dir.with_name(f"{output_dir.name}.{number}")).exists():
        number += 1
    os.replace(output_dir, moved)
    return moved


def clear_leftovers(output_dir: Path) -> None:
    """Remove what a killed process had half written."""
    for path in output_dir.glob(f"{HIDDEN}*"):
        if path.is_file():
            path.unlink()
        shutil.rmtree(path, ignore_errors=True)
