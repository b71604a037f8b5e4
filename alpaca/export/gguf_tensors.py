"""A model's tensors as a GGUF file holds them: names, the order of rotary rows, and how each is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alpaca.convert.rotary import halves_to_interleaved
from alpaca.errors import ExportRefused

if TYPE_CHECKING:
    import numpy as np
    import torch
    from gguf import GGMLQuantizationType

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
"""What the gguf package can write. llama-quantize makes the K-quants (Q4_K_M, …) from an F16 or BF16 file."""
SMALL = ("Q5_1", "Q5_0", "Q4_1", "Q4_0")
_BLOCK = 32
"""Numbers that share a scale: a row whose width is no multiple of it can't be quantised."""
ROTARY = {"q_proj.weight": "num_attention_heads", "k_proj.weight": "num_key_value_heads"}
ARCHITECTURES = {"llama": "llama", "mistral": "llama"}


def architecture(config: dict[str, Any]) -> str:
    """What llama.cpp calls the family. Raises ExportRefused for one that is not written here."""
    family = str(config.get("model_type"))
    if family not in ARCHITECTURES:
        raise ExportRefused(
            f"the base is a {family} model; GGUF files are written of {', '.join(ARCHITECTURES)}. Export `merged`, and "
            "let llama.cpp's convert_hf_to_gguf.py make the file"
        )
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise ExportRefused(
            "the base has biases in its layers, which the llama architecture of GGUF is not written with"
        )
    return ARCHITECTURES[family]


class Names:
    """Hugging Face's names of a model's tensors → GGUF's."""

    def __init__(self, architecture: str, layers: int) -> None:
        from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

        known = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
        self._map = get_tensor_name_map(known[architecture], layers)

    def __getitem__(self, name: str) -> str:
        """Raises ExportRefused for a tensor that the architecture does not have."""
        found = self._map.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ExportRefused(f"the base has a tensor {name!r}, for which GGUF's llama models have no place")
        return found


@dataclass(frozen=True)
class Stored:
    """One tensor of the file: its name there, shape, and how it is stored."""

    name: str
    source: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType

    @property
    def n_bytes(self) -> int:
        from gguf import GGML_QUANT_SIZES

        block, size = GGML_QUANT_SIZES[self.kind]
        count = 1
        for width in self.shape:
            count *= width
        return count // block * size


def stored_as(name: str, shape: tuple[int, ...], wanted: str) -> GGMLQuantizationType:
    """How a tensor is stored in a file of type `wanted`.

    Vectors stay F32. Embeddings and head are Q8_0 where the layers have four or five bits, as their errors meet every
    token; a matrix whose rows can't be cut into blocks is F16.
    """
    from gguf import GGMLQuantizationType as Kind

    if len(shape) < 2:
        return Kind.F32
    if wanted in SMALL and ("embed_tokens" in name or name == "lm_head.weight"):
        wanted = "Q8_0"
    if wanted.startswith("Q") and shape[-1] % _BLOCK:
        return Kind.F16
    return Kind[wanted]


def as_stored(tensor: torch.Tensor, stored: Stored, config: dict[str, Any]) -> np.ndarray:
    """The bytes of a tensor (float32) as the file holds them; queries and keys in the order in which llama.cpp rotates
    them. Raises ExportRefused for numbers that F16 can't hold."""
    import numpy as np
    from gguf import GGMLQuantizationType as Kind
    from gguf import quantize

    heads = next((key for part, key in ROTARY.items() if stored.source.endswith(part)), None)
    if heads:
        count = config.get(heads) or config["num_attention_heads"]
        tensor = halves_to_interleaved(tensor, count)
    values = tensor.contiguous().numpy()
    if stored.kind == Kind.F16 and float(np.abs(values).max(initial=0)) > np.finfo(np.float16).max:
        raise ExportRefused(f"{stored.source} holds numbers beyond {np.finfo(np.float16).max:g}: take BF16 or F32")
    return np.ascontiguousarray(quantize(values, stored.kind))
