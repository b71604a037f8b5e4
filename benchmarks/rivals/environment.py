"""Where the rivals' environments are. `make rivals` installs them; each has its pins beside this file."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENTS = ROOT / ".venv-rivals"
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def python_of(rival: str) -> str:
    """The Python of `rival` (llama, vllm, trl). Ends the program where it is not installed."""
    python = ENVIRONMENTS / rival / "bin" / "python"
    if not python.exists():
        sys.exit(f"{rival} is not installed in {ENVIRONMENTS.name}/{rival}: run make rivals")
    return str(python)


def command(rival: str, module: str, settings: dict[str, str]) -> list[str]:
    """What starts `benchmarks.rivals.MODULE` in the environment of `rival`."""
    return [python_of(rival), "-m", f"benchmarks.rivals.{module}", json.dumps(settings)]


def variables(**more: str) -> dict[str, str]:
    """What a rival's process finds in its environment: all cores, no network, nothing of ours but the path."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(CORES),
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        **more,
    }
