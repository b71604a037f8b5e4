"""The copy of the base's head that PEFT saves beside LoRA on it (its `save_embedding_layers="auto"`).

It is not served: the base has it. It is held against the base's own, because an adapter that was trained on another
head (resized, or trained whole) would answer otherwise here than where it was made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpaca.base.headers import TensorEntry
from alpaca.errors import BadAdapter

if TYPE_CHECKING:
    import numpy as np

HEAD = "lm_head"
COPY = f"base_model.model.{HEAD}.base_layer.weight"
ROWS = 64  # that are compared, spread over the vocabulary
TOLERANCE = 2**-7  # of a value: either side may have been rounded to bfloat16 once, which has 8 bits


def check_head_copy(copy: TensorEntry, head: TensorEntry) -> None:
    """Raise BadAdapter unless `copy` has the base's head's shape, and its values in the rows that are compared."""
    import numpy as np

    if copy.shape != head.shape:
        raise BadAdapter(f"{copy.file.name}: {copy.name} has shape {copy.shape}, the base's head {head.shape}")
    for row in range(0, head.shape[0], -(-head.shape[0] // ROWS)):
        theirs, ours = _row(copy, row), _row(head, row)
        if not np.allclose(theirs, ours, rtol=TOLERANCE, atol=1e-6):
            raise BadAdapter(
                f"{copy.file.name} brings a head that is not this base's ({copy.name} differs in row {row}): it was "
                "trained on another base, or on one whose head was changed. Merge it into that base to use it"
            )


def _row(tensor: TensorEntry, row: int) -> np.ndarray:
    """One row of a matrix as float32, read from its file without mapping it."""
    import numpy as np

    kind = np.dtype({"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}[tensor.dtype])
    with tensor.file.open("rb") as file:
        file.seek(tensor.start + row * tensor.shape[1] * kind.itemsize)
        values = np.frombuffer(file.read(tensor.shape[1] * kind.itemsize), kind)
    if tensor.dtype == "BF16":  # the upper half of a float32
        return (values.astype("<u4") << 16).view("<f4")
    return values.astype("<f4")
