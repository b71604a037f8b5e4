"""Cog's folders of old predictions go; whatever holds a file, or is young, stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

from alpaca.cogserver.folders import sweep


def prediction(root: Path, name: str, *, hours: float, file: bool = False) -> Path:
    folder = root / name
    for inner in ("inputs", "outputs"):
        (folder / inner).mkdir(parents=True)
    if file:
        (folder / "inputs" / "rows.jsonl").write_text("{}")
    os.utime(folder, (time.time() - hours * 3600,) * 2)
    return folder


def test_old_and_empty_folders_are_removed(tmp_path: Path) -> None:
    old, young = prediction(tmp_path, "old", hours=2), prediction(tmp_path, "young", hours=0.1)
    held = prediction(tmp_path, "held", hours=2, file=True)
    (tmp_path / "link").symlink_to(young)
    os.utime(tmp_path / "link", (0, 0), follow_symlinks=False)
    assert sweep(tmp_path) == 1
    assert not old.exists() and (young / "outputs").is_dir()
    assert (held / "inputs" / "rows.jsonl").is_file()


def test_nothing_to_sweep_is_no_fault(tmp_path: Path) -> None:
    assert sweep(tmp_path / "not there") == 0
