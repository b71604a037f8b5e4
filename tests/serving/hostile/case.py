"""One hostile thing: what it is called, how it is made, and what must be said about it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from alpaca.errors import AlpacaError

SECONDS = 2.0  # a refusal takes at most this long …
MEMORY = 64 << 20  # … and this many bytes, at its worst moment


@dataclass(frozen=True)
class Case:
    """`make` spoils the good adapter folder it is given, or writes an archive to the path it is given."""

    name: str
    make: Callable[[Path], object]
    said: str  # a part of the message
    code: str = "E4002"

    def __str__(self) -> str:
        return self.name


def memory(field: str) -> int:
    """Bytes of this process: VmRSS now, or VmHWM at its worst since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def forget_peak() -> None:
    with suppress(OSError):  # where this is not allowed, the peak of the whole process is compared: also a bound
        Path("/proc/self/clear_refs").write_text("5")


@contextmanager
def refused(code: str, said: str) -> Iterator[None]:
    """What happens inside is refused with `code`, at once and without taking memory."""
    forget_peak()
    before, started = memory("VmHWM"), time.monotonic()
    with pytest.raises(AlpacaError) as caught:
        yield
    seconds, grown = time.monotonic() - started, memory("VmHWM") - before
    message = str(caught.value)
    assert message.startswith(code), message
    assert said.replace("'", "") in message.replace("'", ""), message
    assert len(message) < 700
    assert message.isprintable(), ascii(message)
    assert seconds < SECONDS, f"{seconds:.1f} s"
    assert grown < MEMORY, f"{grown >> 20} MiB"


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
