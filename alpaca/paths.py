"""Where things are: the project, what ships with it, what was downloaded, and what a person's path means."""

from __future__ import annotations

import os
import sys
from pathlib import Path

CACHE = "ALPACA_CACHE"
PROJECT = Path(__file__).resolve().parent.parent
TEMPLATES = PROJECT / "templates"
DATA = PROJECT / "data"


def cache_home() -> Path:
    """$ALPACA_CACHE, else ~/.cache/alpaca."""
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "alpaca")


def as_written(path: str | Path) -> Path:
    """What a person means by a path: `~` is the home, and a file whose name merely begins with ~ is that file."""
    text = os.fspath(path)
    if text == "~" or text.startswith("~/") or not os.path.lexists(text):
        text = os.path.expanduser(text)  # unlike Path's own it leaves the name of nobody as it is
    return Path(text)


def this_python() -> str:
    """What to type for the Python that runs this, as short as it works in this folder."""
    import shlex
    import shutil

    if not sys.executable or shutil.which("python") == sys.executable:
        return "python"
    path = Path(sys.executable)
    if not path.is_relative_to(Path.cwd()):
        return shlex.quote(str(path))
    near = str(path.relative_to(Path.cwd()))
    return shlex.quote(near if os.sep in near else f"./{near}")
