"""A file of JSON lines that only grows, whose every line is whole and on the disk once it is written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alpaca.errors import RowsUnwritten


class Lines:
    """The lines of `path`. Half a line at its end, which a killed process or a full disk left, is cut off first."""

    def __init__(self, path: Path) -> None:
        """Raises RowsUnwritten where nothing can be written there."""
        self.path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            size = _whole_size(path)
            self.mended = os.fstat(self._file).st_size - size
            if self.mended:
                os.ftruncate(self._file, size)
        except OSError as error:
            raise _unwritten(path, error) from None

    def add(self, value: Mapping[str, Any]) -> None:
        """Write a line, in one piece. Raises RowsUnwritten; what of it was written is cut off again."""
        size = os.fstat(self._file).st_size
        try:
            left = memoryview(as_line(value))
            while left:
                left = left[os.write(self._file, left) :]
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, size)
            raise _unwritten(self.path, error) from None

    def close(self) -> None:
        os.close(self._file)


def as_line(value: Mapping[str, Any]) -> bytes:
    """One line of JSON, its end included. Half a surrogate pair, which a model may say, can't be written: it is `?`."""
    return (json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file that may end in half a line, which is left out; none where there is no file."""
    if not path.exists():
        return []
    return path.read_bytes()[: _whole_size(path)].splitlines(keepends=True)


def _whole_size(path: Path) -> int:
    """Bytes up to the end of the last whole line."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 65_536)
            file.seek(start)
            if (last := file.read(end - start).rfind(b"\n")) >= 0:
                return start + last + 1
            end = start
    return 0


def _unwritten(path: Path, error: OSError) -> RowsUnwritten:
    return RowsUnwritten(
        f"{path} can't be written: {error.strerror}. What was written is kept; the same command goes on from there"
    )
