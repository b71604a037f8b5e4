"""Choose how a base's weights are held in memory, and say why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alpaca.base.headers import count_weights, tensor_entries
from alpaca.base.quiet import hush_libraries
from alpaca.device import free_memory, pick_device
from alpaca.errors import PrecisionUnavailable

if TYPE_CHECKING:
    import torch

PRECISIONS = ("bf16", "fp32", "int8", "nf4")
SERVED = (*PRECISIONS, "int4")
"""With what the engine alone has, on a CPU."""
# Bytes a weight of a layer takes in memory; nf4 with double-quantised scales is 4.13 bits, int8 keeps a scale per row,
# int4 a scale and a zero per 32 weights.
BYTES_PER_WEIGHT = {"bf16": 2.0, "fp32": 4.0, "int8": 1.01, "nf4": 0.52, "int4": 0.63}


@dataclass(frozen=True)
class Choice:
    """A precision and the sentence that says why it was taken."""

    precision: str
    reason: str


def choose_precision(
    folder: Path,
    wanted: str = "auto",
    device: torch.device | None = None,
    *,
    training: bool = False,
    serving: bool = False,
) -> Choice:
    """Choose how the base's weights are held. `auto` takes bf16 where it fits, else int8, else nf4, and says why.

    Three fifths of the free memory may go to weights when training (activations need the rest), else four fifths
    (keys and values). `serving`: the engine holds them, which quantises by itself on a CPU (`quantised_by_engine`).
    Raises PrecisionUnavailable for an unknown name or where bitsandbytes is missing.
    """
    device = device or pick_device()
    if wanted != "auto":
        known = SERVED if serving else PRECISIONS
        if wanted not in known:
            raise PrecisionUnavailable(f"precision '{wanted}' is not known: choose auto, {', '.join(known)}")
        if wanted == "int4" and device.type != "cpu":
            raise PrecisionUnavailable("int4 is for serving on a CPU; on a GPU choose nf4, which is as small")
        _require_library(wanted, device, serving)
        return Choice(wanted, "as asked")
    free = free_memory(device)
    room = free * (0.6 if training else 0.8)
    where = f"{free / 1e9:.1f} GB free on the {'GPU' if device.type == 'cuda' else 'CPU'}"
    for precision in [native_precision(device), "int8", "nf4"]:
        size = weight_bytes(folder, precision)
        if size <= room:
            note = "" if precision != "fp32" else ", and this processor has no fast bf16"
            if precision in ("int8", "nf4"):
                _require_library(precision, device, serving)
                note = ", and a wider precision does not fit"
            return Choice(
                precision, f"{count_weights(folder) / 1e6:.0f} M weights take {size / 1e9:.2f} GB of {where}{note}"
            )
    raise PrecisionUnavailable(
        f"{folder.name} has {count_weights(folder) / 1e9:.1f} G weights: even nf4 takes {size / 1e9:.1f} GB, "
        f"and {where}. Free some memory or take a smaller base"
    )


def quantised_by_engine(precision: str, device: torch.device) -> bool:
    """Whether the engine quantises the base itself when it serves it; elsewhere bitsandbytes does."""
    return device.type == "cpu" and precision in ("int8", "int4")


def _require_library(precision: str, device: torch.device, serving: bool) -> None:
    if precision in ("int8", "nf4") and not (serving and quantised_by_engine(precision, device)):
        require_bitsandbytes(precision)


def weight_bytes(folder: Path, precision: str) -> float:
    """Bytes that the base's weights take in `precision`. Only the layers' matrices are quantised: embeddings, head and
    norms stay in bf16."""
    matrix, other = BYTES_PER_WEIGHT[precision], BYTES_PER_WEIGHT["fp32" if precision == "fp32" else "bf16"]
    return sum(entry.numel * (matrix if entry.is_layer_matrix else other) for entry in tensor_entries(folder))


def native_precision(device: torch.device) -> str:
    """bf16 where `device` is fast in it, else fp32."""
    import torch

    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"


def require_bitsandbytes(precision: str) -> None:
    """Raise PrecisionUnavailable where bitsandbytes can't be used."""
    hush_libraries()
    try:
        import bitsandbytes  # noqa: F401
    except Exception as error:  # a broken CUDA set-up raises RuntimeError and OSError as well
        raise PrecisionUnavailable(
            f"{precision} needs bitsandbytes, which does not load here ({error}). "
            "Install it (pip install bitsandbytes) or use --quantization bf16"
        ) from error
