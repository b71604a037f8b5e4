"""Server-sent events, as Cog's server writes them, from bytes in pieces of any size."""

from __future__ import annotations

import json
from typing import Any

MOST_BYTES = 64 << 20  # of one event: `completed` holds the whole answer again
Event = tuple[str, dict[str, Any]]


class TooLong(Exception):
    """An event of more than MOST_BYTES, which no server of Cog's sends."""


class EventReader:
    """Takes bytes, gives the events that are whole."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []  # of a line that has not ended
        self._size = 0
        self._name = ""

    def read(self, data: bytes) -> list[Event]:
        """The events that end in `data`. Raises TooLong, and ValueError for data that is no JSON object."""
        events = []
        *lines, rest = data.split(b"\n")
        if lines and self._rest:
            lines[0] = b"".join([*self._rest, lines[0]])
            self._rest, self._size = [], 0
        for line in lines:
            field, _, value = line.partition(b":")
            if field == b"event":
                self._name = value.strip().decode("utf-8", "replace")
            elif field == b"data":
                content = json.loads(value.decode())
                if not isinstance(content, dict):
                    raise ValueError("an event's data is no JSON object")
                events.append((self._name, content))
        if rest:
            self._rest.append(rest)
            self._size += len(rest)
            if self._size > MOST_BYTES:
                raise TooLong
        return events
