"""Where what was downloaded is kept."""

from __future__ import annotations

import os
from pathlib import Path

CACHE = "ALPACA_CACHE"


def cache_home() -> Path:
    """$ALPACA_CACHE, else ~/.cache/alpaca."""
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "alpaca")
