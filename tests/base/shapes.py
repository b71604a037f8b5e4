"""Tiny random bases of the families that are served beside LLaMA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.conftest import make_tokenizer


def shaped_base(folder: Path, kind: str, *, tokenizer: Any = None, **settings: Any) -> Path:
    """Save a random base of two layers; `kind` is how transformers names its classes: Llama, Mistral, Qwen2, Qwen3."""
    import torch
    import transformers

    tokenizer = tokenizer or make_tokenizer()
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 3, "initializer_range": 0.2,
    }  # fmt: skip
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**(sizes | settings))
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
