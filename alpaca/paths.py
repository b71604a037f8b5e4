"""Where things are: the project, what ships with it, and what was downloaded."""

from __future__ import annotations

import os
from pathlib import Path

CACHE = "ALPACA_CACHE"
PROJECT = Path(__file__).resolve().parent.parent
TEMPLATES = PROJECT / "templates"
DATA = PROJECT / "data"


def cache_home() -> Path:
    """$ALPACA_CACHE, else ~/.cache/alpaca."""
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "alpaca")
