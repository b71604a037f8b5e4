"""Where a base runs, and the memory there is for it: the GPU's, or what the system and the container's limit leave."""

from __future__ import annotations

import gc
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CGROUPS = Path("/sys/fs/cgroup")
"""A container's own limits: the files of version 2 lie here, those of version 1 in the folder memory."""


def pick_device() -> torch.device:
    """This process's GPU where there is one (LOCAL_RANK chooses it), else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK") or 0))
    return torch.device("cpu")


def free_memory(device: torch.device) -> int:
    """Bytes free on `device`; on the CPU what the system and the container's limit leave."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    free = int(psutil.virtual_memory().available)
    left = container_memory()
    return free if left is None else max(0, min(free, left))


def container_memory(folder: Path = CGROUPS) -> int | None:
    """Bytes that the limit of this container leaves; None where there is no limit.

    What is read from files counts as used only while it is in active use: the kernel gives up the rest when memory gets
    short, and counts it all the same.
    """
    for limit, used, cached in (
        (folder / "memory.max", folder / "memory.current", "inactive_file"),
        (folder / "memory/memory.limit_in_bytes", folder / "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most, now = int(limit.read_text()), int(used.read_text())  # "max" is no number: no limit
            reclaimable = re.search(rf"^{cached} (\d+)$", (limit.parent / "memory.stat").read_text(), re.MULTILINE)
        except (OSError, ValueError):
            continue
        return most - now + (int(reclaimable[1]) if reclaimable else 0)
    return None


def release_memory(device: torch.device) -> None:
    """Give back what nobody refers to any more, a model whose parts hold each other too."""
    gc.collect()
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()


def peak_memory(device: torch.device) -> int:
    """The most bytes this process has had so far: on the GPU as torch counts them, else resident on the CPU."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count what the process had before it became this program
        peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if peak:
            return int(peak[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
