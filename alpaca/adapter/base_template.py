"""The template that a base is asked in where nobody names one: one that was tuned here says it in its card, as adapters
do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alpaca.adapter.card import read_card
from alpaca.prompts.find import load_template, template_from_card
from alpaca.prompts.template import Template


def named_template(name: str, base: Path, tokenizer: Any) -> tuple[Template, str]:
    """(the template called `name`, ""), or, where that is empty or auto, what `base_template` says. Raises BadTemplate
    for a name that there is not."""
    return base_template(base, tokenizer) if name in ("", "auto") else (load_template(name, tokenizer), "")


def base_template(base: Path, tokenizer: Any) -> tuple[Template, str]:
    """(the template, why it is this one). Raises BadAdapter and BadTemplate for a card that can't be read."""
    if (card := read_card(base)) is not None:
        return template_from_card(card.template, tokenizer), "the base was trained with it"
    why = "the base has a chat template" if tokenizer.chat_template else "the base has no chat template"
    return load_template("auto", tokenizer), why
