"""What is put on the screen, and which process does it when several train together."""

from __future__ import annotations

import os
from collections.abc import Callable

Say = Callable[[str], None]


def is_main_process() -> bool:
    """Whether this process prints and writes (rank 0 under torchrun)."""
    return os.environ.get("RANK", "0") == "0"


def say_on_main(line: str) -> None:
    """Print a line once, whatever the number of processes."""
    if is_main_process():
        print(line, flush=True)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
