"""Memory while training: how much is in use, and an error that says what to do where it is too short."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from alpaca.errors import OutOfMemory

LESS = (
    "Lower --micro_batch_tokens or --cutoff_len, add --gradient_checkpointing, or hold the base in --quantization nf4"
)


def memory_now(device: torch.device) -> int:
    """Bytes in use: of torch's on a GPU, of this process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    import psutil

    return int(psutil.Process().memory_info().rss)


@contextlib.contextmanager
def explain_memory(tokens: int) -> Iterator[None]:
    """Raise OutOfMemory for whatever says inside that memory is too short. `tokens`: of the micro-batch."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        raise OutOfMemory(
            f"out of memory in a micro-batch of {tokens} tokens. {LESS}. Checkpoints so far are kept"
        ) from error


def is_shortage(error: BaseException) -> bool:
    """Whether an error means that memory is too short; on a CPU torch says so in a plain RuntimeError."""
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in text for words in ("out of memory", "can't allocate memory", "cannot allocate memory")
    )
