"""Adapters for tests: made by PEFT itself, with a random B so that they change the answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EVERY_KIND: dict[str, dict[str, Any]] = {
    "a": {},
    "b": {"r": 16, "lora_alpha": 4, "target_modules": ["k_proj", "o_proj", "gate_proj", "down_proj"]},
    "dora": {"use_dora": True, "target_modules": ["v_proj", "up_proj"]},
    "patterns": {
        "r": 24,
        "lora_alpha": 5,
        "target_modules": ["q_proj", "k_proj", "o_proj", "gate_proj", "down_proj"],
        "use_rslora": True,
        "rank_pattern": {"q_proj": 3},
        "alpha_pattern": {"k_proj": 99},
    },
}
HEAD = {"target_modules": ["lm_head", "q_proj"]}
"""For bases whose head is not tied to the embeddings."""


def make_adapters(base: Path, root: Path, kinds: dict[str, dict[str, Any]], **others: Any) -> Path:
    """Save one adapter of each kind into `root`, under its name."""
    for seed, (name, lora) in enumerate(kinds.items(), 1):
        make_adapter(base, root / name, seed=seed, **others, **lora)
    return root


def make_adapter(
    base: Path, folder: Path, *, seed: int = 1, template: str | None = None, spread: float = 0.5,
    copy_of_head: bool = False, **lora: Any,
) -> Path:  # fmt: skip
    """Save a LoRA adapter for `base` into `folder`; with `template`, a card that names it. `spread`: that of its B.

    `copy_of_head`: as PEFT does by default, which adds the base's head to an adapter of it.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **lora}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), LoraConfig(**settings))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0.0, spread)
    model.save_pretrained(str(folder), save_embedding_layers="auto" if copy_of_head else False)
    if template is not None:
        write_card(base, folder, template)
    return folder


def write_card(base: Path, folder: Path, template: str) -> None:
    from alpaca.adapter.card import Card
    from alpaca.base.headers import fingerprint
    from alpaca.base.load import load_tokenizer
    from alpaca.prompts.find import load_template

    card = load_template(template, load_tokenizer(base)).card()
    Card(base_model=base.name, base_fingerprint=fingerprint(base), template=card, special_tokens={}).write(folder)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
