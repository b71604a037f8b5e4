"""Folders that Cog 0.23.1 makes for every prediction and never removes: on a container's /tmp they fill its memory."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

FOLDERS = Path("/tmp/coglet/predictions")  # whatever TMPDIR says
AGE_SECONDS = 3600.0
PAUSE_SECONDS = 600.0


def sweep(folders: Path = FOLDERS, age: float = AGE_SECONDS) -> int:
    """Remove the folders that are older than `age` in seconds and hold no file; the number of those removed."""
    removed = 0
    with contextlib.suppress(OSError):  # no predictions yet
        for entry in os.scandir(folders):
            with contextlib.suppress(OSError):  # a file in it, or another server was faster
                old = time.time() - entry.stat(follow_symlinks=False).st_mtime > age
                if old and entry.is_dir(follow_symlinks=False):
                    for inner in ("inputs", "outputs"):
                        with contextlib.suppress(FileNotFoundError):
                            os.rmdir(os.path.join(entry.path, inner))
                    os.rmdir(entry.path)
                    removed += 1
    return removed


def keep_swept() -> None:
    """Sweep every ten minutes for as long as this process lives."""

    def work() -> None:
        while True:
            sweep()
            time.sleep(PAUSE_SECONDS)

    threading.Thread(target=work, name="sweep", daemon=True).start()
