"""Load a base's tokenizer and weights. Weights are read from safetensors only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpaca.base.beyond import drop_tokens_beyond
from alpaca.base.headers import embedding_rows
from alpaca.base.precision import require_bitsandbytes
from alpaca.base.quiet import hush_libraries
from alpaca.base.skeleton import model_config
from alpaca.device import pick_device
from alpaca.errors import BadBase
from alpaca.progress import say_on_main

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the base's tokenizer; none of its ids lies beyond the model's embeddings.

    An added token that does is taken out, which is said: its spelling is plain text. Raises BadBase where the tokenizer
    can't be read, has no EOS, or can't do without such a token.
    """
    from transformers import AutoTokenizer

    hush_libraries()
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder))
    except Exception as error:
        raise BadBase(f"the tokenizer in {folder} can't be loaded: {error}") from error
    if tokenizer.eos_token_id is None:
        raise BadBase(f"the tokenizer in {folder} has no EOS token: answers could never end")
    rows = embedding_rows(folder, len(tokenizer))
    for name in ("bos", "eos", "unk"):
        token_id = getattr(tokenizer, f"{name}_token_id")
        if token_id is not None and not 0 <= token_id < rows:
            raise BadBase(f"{folder}: {name}_token_id {token_id} lies outside the model's {rows} embeddings")
    if dropped := drop_tokens_beyond(tokenizer, rows, str(folder)):
        more = f" and {len(dropped) - 3} more" if len(dropped) > 3 else ""
        say_on_main(
            f"tokenizer: {', '.join(dropped[:3])}{more} lie beyond the model's {rows} embeddings and stay plain text"
        )
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
    model_config(folder)
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
    for name in sorted(found["missing_keys"]):  # the library would put random numbers in their place
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
