"""`gguf-lora`: the adapter alone as GGUF, for llama.cpp's --lora."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alpaca.convert.rotary import halves_to_interleaved
from alpaca.export.gguf_tensors import ROTARY, Names, architecture
from alpaca.export.portable import Portable

TYPES = ("F32", "F16")


def write_adapter(path: Path, adapter: Portable, config: dict[str, Any], name: str, wanted: str) -> None:
    """Write the file. `config`: the base's config.json. A stays as it is; the rows of B are a layer's outputs, so those
    of queries and keys go into the order in which llama.cpp rotates them."""
    import numpy as np
    from gguf import GGUFType, GGUFWriter, LlamaFileType

    kind = architecture(config)
    names = Names(kind, config["num_hidden_layers"])
    out = GGUFWriter(path, kind)
    out.add_type(GGUFType.ADAPTER)
    out.add_string("adapter.type", "lora")
    out.add_float32("adapter.lora.alpha", adapter.alpha)
    out.add_name(name)
    out.add_file_type(LlamaFileType.ALL_F32 if wanted == "F32" else LlamaFileType.MOSTLY_F16)
    dtype = np.float32 if wanted == "F32" else np.float16
    for module, (a, b) in adapter.modules.items():
        weight = f"{module}.weight"
        heads = next((key for part, key in ROTARY.items() if weight.endswith(part)), None)
        if heads:
            b = halves_to_interleaved(b, config.get(heads) or config["num_attention_heads"])
        out.add_tensor(f"{names[weight]}.lora_a", np.ascontiguousarray(a.numpy(), dtype))
        out.add_tensor(f"{names[weight]}.lora_b", np.ascontiguousarray(b.numpy(), dtype))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
