"""What transformers makes of a base's config.json, without its weights: faults show before anything large is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alpaca.base.quiet import hush_libraries
from alpaca.errors import BadBase


def model_config(folder: Path) -> Any:
    """The configuration as transformers reads it, with its defaults filled in. Raises BadBase with its reason."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder))
    except Exception as error:  # each class of configurations checks its fields in its own way
        raise BadBase(f"{folder} can't be loaded: transformers can't use its config.json: {_reason(error)}") from error


def skeleton(folder: Path) -> Any:
    """The model with the right modules and shapes, and no memory behind them. Raises BadBase."""
    import torch
    from transformers import AutoModelForCausalLM

    hush_libraries()
    config = model_config(folder)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except Exception as error:  # whatever a class stumbles over in a field of its own
        raise BadBase(
            f"{folder} can't be loaded: transformers can't build the model of its config.json: {_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if len(text) < 20 else text[:300]
