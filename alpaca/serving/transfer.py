"""What a step needs on a GPU, sent there without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def send(host: Tensor, device: torch.device) -> Tensor:
    """`host`, which is on the CPU, on `device`."""
    return host if device.type == "cpu" else send_into(torch.empty_like(host, device=device), host)


def send_into(place: Tensor, host: Tensor) -> Tensor:
    """Copy `host` into `place`, of the same shape and type, and return that.

    For a GPU it goes through pinned memory: only from there does the copy run while Python goes on. That memory is
    taken anew each time from torch, whose caching host allocator gives it to nobody else before the copy has run. So it
    is never overwritten too early, and nobody has to wait for that.
    """
    return place.copy_(host.pin_memory() if place.is_cuda else host, non_blocking=True)
