"""Large memory that is set aside at start-up and filled over time."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 64  # bytes; what torch's own allocations have, and what products are fastest with


def zeros(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU the system gives each page when it is first written, and nothing before.

    torch.zeros writes every page at once: for the default base's cache that is 1.5 GB and over two seconds.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return torch.from_numpy(raw[start : start + size]).view(dtype).view(shape)
