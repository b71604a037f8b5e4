"""The base: find it, choose a precision for it and say why, and load it.

A base is a Hugging Face folder: under ``weights/``, anywhere else on disk, or a hub id or URL that is fetched once.
Weights are read from safetensors only.
"""

from __future__ import annotations

import json
import logging
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpaca.base_files import count_weights, read_config, tensor_entries, weight_files
from alpaca.device import free_memory, pick_device
from alpaca.errors import BadBase, BaseNotFound, PrecisionUnavailable, SeveralBases

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS = Path("weights")
PRECISIONS = ("bf16", "fp32", "int8", "nf4")
# Bytes a weight of a layer takes in memory; nf4 with double-quantised scales is 4.13 bits, int8 keeps a scale per row.
BYTES_PER_WEIGHT = {"bf16": 2.0, "fp32": 4.0, "int8": 1.01, "nf4": 0.52}
HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja", "*.txt"]


@dataclass(frozen=True)
class Choice:
    """A precision and the sentence that says why it was taken."""

    precision: str
    reason: str


def hush_libraries() -> None:
    """Keep the libraries' notes to their own developers off the screen: none of them asks the user for anything."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # optional kernels that are not installed
    for text in (".*is_gradient_checkpointing. is deprecated.*", "Adapter .* was active which is now deleted.*"):
        warnings.filterwarnings("ignore", message=text)


# --- find ---------------------------------------------------------------------------------------------------------
def resolve_base(base_model: str | None = None, weights_dir: Path = WEIGHTS) -> Path:
    """Return the folder of the base: `base_model`, else the variable BASE_MODEL, else the only one in `weights_dir`.

    `base_model` is a folder, the name of a folder in `weights_dir`, or a hub id (``owner/name``), which is fetched
    into the hub cache; or the http(s) URL of an archive, which is fetched once and must have the SHA-256 that the
    variable BASE_SHA256 says. Never hand on a client's URL. Raises BaseNotFound, SeveralBases, BadBase for a folder
    that holds no usable base, and the errors of alpaca.base_download.
    """
    wanted = base_model or os.environ.get("BASE_MODEL", "")
    if not wanted:
        return _only_base(weights_dir)
    if re.match("https?://", wanted, re.IGNORECASE):
        from alpaca.base_download import fetch_base

        return fetch_base(wanted)
    for folder in (Path(wanted), weights_dir / wanted):
        if os.path.isdir(folder):  # unlike Path's, it takes a name of any length
            check_base(folder)
            return folder
    if re.fullmatch(r"[\w.-]+/[\w.-]+", wanted) and not wanted.startswith("."):
        return _fetch_from_hub(wanted, weights_dir)
    raise BaseNotFound(f"no base '{wanted[:200]}': not a folder, not in {weights_dir}/. {_what_there_is(weights_dir)}")


def bases_in(weights_dir: Path) -> list[Path]:
    """Folders in `weights_dir` that hold a model's configuration and weights."""
    if not weights_dir.is_dir():
        return []
    return sorted(f for f in weights_dir.iterdir() if (f / "config.json").is_file() and weight_files(f))


def _only_base(weights_dir: Path) -> Path:
    found = bases_in(weights_dir)
    if len(found) == 1:
        check_base(found[0])
        return found[0]
    if not found:
        raise BaseNotFound(f"there is no base in {weights_dir}/. {_what_there_is(weights_dir)}")
    names = ", ".join(f.name for f in found)
    raise SeveralBases(
        f"{weights_dir}/ holds several bases: {names}. Say which: --base_model {found[0]}, or BASE_MODEL={found[0]}"
    )


def _what_there_is(weights_dir: Path) -> str:
    names = [str(f) for f in bases_in(weights_dir)]
    there = f"There is: {', '.join(names)}." if names else f"{weights_dir}/ holds none yet."
    return (
        f"{there} Convert one (python -m alpaca.convert --help), fetch the small default base "
        "(make weights/smollm2-135m-instruct/config.json), or name a folder, hub id or URL with --base_model"
    )


def _fetch_from_hub(hub_id: str, weights_dir: Path) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=HUB_FILES))
    except Exception as error:  # the hub client raises many kinds: offline, gated, no such repository
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BaseNotFound(
            f"'{hub_id}' is no local folder and could not be fetched from the hub: {reason}. "
            f"{_what_there_is(weights_dir)}"
        ) from error
    check_base(folder)
    return folder


def check_base(folder: Path) -> None:
    """Raise BadBase unless `folder` holds a configuration, a tokenizer and whole safetensors weights, all shards there.

    The weights' headers are read and held against the files' sizes: a copy that was cut short is found before it is
    loaded.
    """
    read_config(folder)
    if not weight_files(folder):
        pickled = [f.name for f in folder.glob("*.bin")]
        hint = f" ({', '.join(pickled)} is pickled, which can run code: convert it first)" if pickled else ""
        raise BadBase(f"{folder} has no *.safetensors weights{hint}")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise BadBase(f"{folder} has no tokenizer (tokenizer.json or tokenizer.model)")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BadBase(f"{index} is no index of shards: {error!r}") from None
        missing = sorted(s for s in shards if not (folder / s).is_file())
        if missing:
            raise BadBase(f"{folder} lacks {len(missing)} of {len(shards)} shards: {', '.join(missing[:3])}")
    for _ in tensor_entries(folder):  # holds each against the size of its file
        pass


# --- precision ----------------------------------------------------------------------------------------------------
def choose_precision(
    folder: Path, wanted: str = "auto", device: torch.device | None = None, training: bool = False
) -> Choice:
    """Choose how the base's weights are held. `auto` takes bf16 where it fits, else int8, else nf4, and says why.

    Three fifths of the free memory may go to weights when training (activations need the rest), four fifths when
    serving (keys and values). Raises PrecisionUnavailable for an unknown name or where bitsandbytes is missing.
    """
    device = device or pick_device()
    if wanted != "auto":
        if wanted not in PRECISIONS:
            raise PrecisionUnavailable(f"precision '{wanted}' is not known: choose auto, {', '.join(PRECISIONS)}")
        if wanted in ("int8", "nf4"):
            require_bitsandbytes(wanted)
        return Choice(wanted, "as asked")
    free = free_memory(device)
    room = free * (0.6 if training else 0.8)
    where = f"{free / 1e9:.1f} GB free on the {'GPU' if device.type == 'cuda' else 'CPU'}"
    for precision in [_native_precision(device), "int8", "nf4"]:
        size = weight_bytes(folder, precision)
        if size <= room:
            note = "" if precision != "fp32" else ", and this processor has no fast bf16"
            if precision in ("int8", "nf4"):
                require_bitsandbytes(precision)
                note = ", and a wider precision does not fit"
            return Choice(
                precision, f"{count_weights(folder) / 1e6:.0f} M weights take {size / 1e9:.2f} GB of {where}{note}"
            )
    raise PrecisionUnavailable(
        f"{folder.name} has {count_weights(folder) / 1e9:.1f} G weights: even nf4 takes {size / 1e9:.1f} GB, "
        f"and {where}. Free some memory or take a smaller base"
    )


def weight_bytes(folder: Path, precision: str) -> float:
    """Bytes that the base's weights take in `precision`. Only the layers' matrices are quantised: embeddings, head and
    norms stay in bf16."""
    matrix, other = BYTES_PER_WEIGHT[precision], BYTES_PER_WEIGHT["fp32" if precision == "fp32" else "bf16"]
    return sum(entry.numel * (matrix if entry.is_layer_matrix else other) for entry in tensor_entries(folder))


def _native_precision(device: torch.device) -> str:
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


# --- load ---------------------------------------------------------------------------------------------------------
def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the base's tokenizer. Raises BadBase where it can't be read, has no EOS, or an id beyond the vocabulary."""
    from transformers import AutoTokenizer

    hush_libraries()
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder))
    except Exception as error:
        raise BadBase(f"the tokenizer in {folder} can't be loaded: {error}") from error
    if tokenizer.eos_token_id is None:
        raise BadBase(f"the tokenizer in {folder} has no EOS token: answers could never end")
    vocabulary = read_config(folder).get("vocab_size", len(tokenizer))
    for name in ("bos", "eos", "pad", "unk"):
        token_id = getattr(tokenizer, f"{name}_token_id")
        if token_id is not None and not 0 <= token_id < vocabulary:
            raise BadBase(f"{folder}: {name}_token_id {token_id} lies outside the model's {vocabulary} embeddings")
    return tokenizer


def load_model(
    folder: Path, precision: str, device: torch.device | None = None, attn_implementation: str = "sdpa"
) -> PreTrainedModel:
    """Load the base's weights, frozen and in evaluation mode, on `device` in `precision` (one of PRECISIONS)."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    hush_libraries()
    device = device or pick_device()
    options: dict[str, Any] = {"dtype": torch.float32 if precision == "fp32" else torch.bfloat16}
    if precision in ("int8", "nf4"):
        require_bitsandbytes(precision)
        options["quantization_config"] = _quantization(precision)
        options["device_map"] = {"": str(device)}
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder),
            attn_implementation=attn_implementation,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise BadBase(f"{folder} can't be loaded: {error}") from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    model: PreTrainedModel
    model, found = loaded
    for name in sorted(found["missing_keys"]):  # the library would go on with random numbers in their place
        raise BadBase(f"{folder} lacks {len(found['missing_keys'])} of the model's tensors, {name} for one")
    for name, *shapes in sorted(found["mismatched_keys"]):
        raise BadBase(f"{folder}: {name} has shape {tuple(shapes[0])}, its config.json says {tuple(shapes[1])}")
    if precision not in ("int8", "nf4"):
        model.to(device)  # type: ignore[arg-type]
    model.requires_grad_(False)
    return model.eval()


def _quantization(precision: str) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    if precision == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
