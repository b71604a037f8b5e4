"""What a person sees of long work: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from alpaca.words import size_text

Say = Callable[[str], None]
Advance = Callable[[int], None]
LOG_SECONDS = 10.0  # between two lines in a log
BYTES = "B"


def say(message: str) -> None:
    """Print one line at once, so that a log shows it when it happens."""
    print(message, flush=True)


def say_aside(message: str) -> None:
    """Print one line to stderr, where stdout is for what was asked for."""
    print(message, file=sys.stderr, flush=True)


def is_main_process() -> bool:
    """Whether this process prints and writes (rank 0 under torchrun)."""
    return (os.environ.get("RANK") or "0") == "0"


def processes() -> int:
    """How many processes train together (torchrun sets WORLD_SIZE; an empty one is none)."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_sharded() -> bool:
    """Whether the base is spread over the processes (accelerate launch sets this with FSDP)."""
    return processes() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("true", "1")


def say_on_main(message: str) -> None:
    """Print one line once, whatever the number of processes."""
    if is_main_process():
        say(message)


@contextmanager
def progress(
    what: str, total: int, unit: str = BYTES, say: Say = say, more: Callable[[], str] = lambda: ""
) -> Iterator[Advance]:
    """Show how long work comes along; the value is a function to call with how much more of it is done.

    `total` counts `unit`s (in the singular), 0 where it is not known. A terminal gets a bar. A log gets a line when it
    begins and one every LOG_SECONDS, with rate and time left. How much it was and how long it took comes at the end.
    `more`: what else there is to tell at that moment; a call with 0 tells it although nothing more is done.
    """
    started = said = time.monotonic()
    done = 0
    has_bar = total > 0 and sys.stderr.isatty()
    if not has_bar:
        say(f"{what} ({_amount(total, unit)})" if total else what)
    with _bar(what, total, unit) if has_bar else nullcontext() as bar:

        def advance(count: int) -> None:
            nonlocal done, said
            done += count
            now = time.monotonic()
            if bar is not None:
                bar.set_postfix_str(more(), refresh=False)
                bar.update(count)
            elif now - said >= LOG_SECONDS and (done or more()):
                said = now
                beside = f"; {more()}" if more() else ""
                say(f"{what}: {_so_far(done, total, unit, max(1e-3, now - started))}{beside}")

        yield advance
    say(f"{what}: done, {_amount(done, unit)} in {time.monotonic() - started:.1f} s")


def _bar(what: str, total: int, unit: str) -> Any:
    from tqdm import tqdm

    scaled = unit == BYTES
    return tqdm(total=total, desc=what, unit=unit, unit_scale=scaled, leave=False, dynamic_ncols=True)


def _so_far(done: int, total: int, unit: str, seconds: float) -> str:
    speed = f", {_speed(done, unit, seconds)}" if done else ""
    if not total:
        return f"{_amount(done, unit)}{speed}"
    number = size_text(done) if unit == BYTES else f"{done:,}"
    left = f", {max(0, total - done) * seconds / done:,.0f} s left" if done else ""
    return f"{number} of {_amount(total, unit)}{speed}{left}"


def _speed(done: int, unit: str, seconds: float) -> str:
    """How many in a second, or, where one takes longer than that, how many seconds it takes."""
    if unit == BYTES or done >= seconds:
        return f"{_amount(done / seconds, unit)}/s"
    each = seconds / done
    return f"{each:,.{1 if each < 10 else 0}f} s/{unit}"


def _amount(count: float, unit: str) -> str:
    """`count` units in words; of less than ten in a second, tenths are told."""
    if unit == BYTES:
        return size_text(count)
    number = f"{count:,}" if isinstance(count, int) else f"{count:,.{1 if count < 10 else 0}f}"
    return f"{number} {unit if number == '1' else unit + 's'}"
