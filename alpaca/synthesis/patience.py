"""How long to wait before a server is asked again."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

FIRST, LONGEST = 0.5, 30.0  # seconds; each wait is twice the one before
LONGEST_ASKED = 600.0  # seconds that a server may ask for


def pause_before(attempt: int, headers: Mapping[str, str] | None = None) -> float:
    """Seconds before try number `attempt` (1 is the first repetition): what the server asks for by Retry-After, else
    twice as long each time, less a random part, so that many who were refused together don't come back together."""
    asked = _retry_after((headers or {}).get("retry-after", ""))
    if asked is not None:
        return min(asked, LONGEST_ASKED)
    return float(min(LONGEST, FIRST * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0))


def _retry_after(text: str) -> float | None:
    """Seconds from a number of them or a date, the two forms of RFC 9110, section 10.2.3; None for anything else."""
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (when - datetime.now(UTC)).total_seconds()) if when.tzinfo else None
