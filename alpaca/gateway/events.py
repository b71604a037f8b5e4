"""Server-sent events, as Cog's server writes them, from bytes in pieces of any size."""

from __future__ import annotations

import json
from collections.abc import Iterator
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

    def read(self, data: bytes) -> Iterator[Event]:
        """The events that end in `data`. Raises TooLong, and ValueError for data that is no JSON object."""
        *lines, rest = data.split(b"\n")
        for line in lines:
            whole = b"".join([*self._rest, line])
            self._rest, self._size = [], 0
            field, _, value = whole.rstrip(b"\r").partition(b":")
            if field == b"event":
                self._name = value.strip().decode("utf-8", "replace")
            elif field == b"data":
                content = json.loads(value)
                if not isinstance(content, dict):
                    raise ValueError("an event's data is no JSON object")
                yield self._name, content
        if rest:
            self._rest.append(rest)
            self._size += len(rest)
            if self._size > MOST_BYTES:
                raise TooLong
