"""The memory there is: a container's limit counts, in both versions of control groups."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from alpaca.device import container_memory, free_memory

V2 = {
    "memory.max": "1000\n",
    "memory.current": "700\n",
    "memory.stat": "anon 400\ninactive_file 200\nactive_file 100\n",
}
V1 = {
    "memory/memory.limit_in_bytes": "1000\n",
    "memory/memory.usage_in_bytes": "700\n",
    "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 200\n",
}


def control_group(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_free_memory_is_what_this_machine_has() -> None:
    assert 0 < free_memory(torch.device("cpu")) <= psutil.virtual_memory().total


@pytest.mark.parametrize("files", [V1, V2], ids=["version 1", "version 2"])
def test_a_limit_leaves_what_is_not_in_use_and_what_was_only_read(tmp_path: Path, files: dict[str, str]) -> None:
    assert container_memory(control_group(tmp_path, files)) == 500


@pytest.mark.parametrize(
    "files",
    [{}, {**V2, "memory.max": "max\n"}, {"memory.max": "1000\n"}, {"memory/memory.limit_in_bytes": "?"}],
    ids=["no files", "no limit", "half of them", "no number"],
)
def test_without_a_limit_there_is_none(tmp_path: Path, files: dict[str, str]) -> None:
    assert container_memory(control_group(tmp_path, files)) is None
