"""What a base's folder must hold, checked from the headers of its files before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alpaca.base.headers import INDEX, SINGLE, TensorEntry, read_config, tensor_entries, weight_files
from alpaca.errors import BadBase

SMALL_FILES = ["*.json", "tokenizer.model", "*.jinja", "*.txt"]
HUB_FILES = [*SMALL_FILES, "*.safetensors"]
PLAIN_DTYPES = ("BF16", "F16", "F32", "F64")  # of weights that are not quantised, as safetensors spells them
QUANTISERS = {
    "gptq": "GPTQ", "awq": "AWQ", "bitsandbytes": "bitsandbytes", "fp8": "FP8", "fbgemm_fp8": "FP8", "mxfp4": "MXFP4",
}  # fmt: skip


def check_base(folder: Path) -> None:
    """Raise BadBase unless `folder` holds a configuration, a tokenizer and whole safetensors weights, all shards there.

    The weights' headers are read and held against the files' sizes: a copy that was cut short is found before it is
    loaded. Weights that are quantised already are refused.
    """
    check_config(folder, read_config(folder))
    if not weight_files(folder):
        raise BadBase(f"{folder} has no *.safetensors weights: neither {SINGLE} nor {INDEX}{_others(folder)}")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise BadBase(f"{folder} has no tokenizer (tokenizer.json or tokenizer.model)")
    for entry in tensor_entries(folder):  # holds each against the size of its file
        _check_dtype(folder, entry)


def check_config(folder: Path, config: dict[str, Any]) -> None:
    """Raise BadBase where the configuration says that the weights are quantised already."""
    said = config.get("quantization_config") or config.get("compression_config") or config.get("quantization")
    if not said:
        return
    method = str(said.get("quant_method") or "") if isinstance(said, dict) else ""
    kind = QUANTISERS.get(method, method[:40] or "an unnamed method")
    if method == "bitsandbytes" and isinstance(said, dict):
        kind += " 8-bit" if said.get("load_in_8bit") else " 4-bit"
    raise _quantised(folder, kind)


def _check_dtype(folder: Path, entry: TensorEntry) -> None:
    """A quantised copy need not say so in its config.json: its layers' matrices do."""
    if entry.is_layer_matrix and entry.dtype not in PLAIN_DTYPES:
        raise _quantised(folder, f"{entry.name} is {entry.dtype}")


def _quantised(folder: Path, kind: str) -> BadBase:
    return BadBase(
        f"{folder} is quantised already ({kind}), and adapters are trained and served on whole weights only. Take the "
        "base that it was made from, in 16 or 32 bits: its model card names it, and its name is usually the same "
        "without the method. It is held just as small by nf4 or int8 (--quantization for training, PRECISION for "
        "serving)"
    )


def _others(folder: Path) -> str:
    if pickled := sorted(file.name for file in folder.glob("*.bin")):
        return f" ({', '.join(pickled)} is pickled, which can run code: convert it first)"
    if others := sorted(file.name for file in folder.glob("*.safetensors")):
        return f" ({', '.join(others[:3])} is a file that transformers does not load)"
    return ""
