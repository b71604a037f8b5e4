"""Memory while training: how much is in use, and an error that says what to do where it is too short."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from alpaca.errors import OutOfMemory
from alpaca.progress import is_sharded, processes
from alpaca.training.tuning import Tuning


def memory_now(device: torch.device) -> int:
    """Bytes in use: of torch's on a GPU, of this process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    import psutil

    return int(psutil.Process().memory_info().rss)


def check_memory(held: float, free: float, tuning: Tuning) -> None:
    """Raise OutOfMemory where what training holds whatever the rows are, `held` bytes, is more than there is.

    In sharded training each process holds its share; of several on one CPU, each holds all.
    """
    if is_sharded():
        held /= processes()
    if held > free:
        raise OutOfMemory(
            f"{tuning.what}: weights, gradients and the optimizer's moments alone take {held:,.0f} bytes "
            f"({held / 1e9:.1f} GB), and {free:,.0f} ({free / 1e9:.1f} GB) are free. {tuning.instead}"
        )


@contextlib.contextmanager
def explain_memory(tokens: int, less: str) -> Iterator[None]:
    """Raise OutOfMemory for whatever says inside that memory is too short. `tokens`: of the micro-batch; `less`: what
    to do, a sentence."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        raise OutOfMemory(
            f"out of memory in a micro-batch of {tokens} tokens. {less}. Checkpoints so far are kept"
        ) from error


def is_shortage(error: BaseException) -> bool:
    """Whether an error means that memory is too short; on a CPU torch says so in a plain RuntimeError."""
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in text for words in ("out of memory", "can't allocate memory", "cannot allocate memory")
    )
