"""What rows are measured with: the base's tokenizer, the template and the cutoff, as a fine-tune would choose them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca.adapter.base_template import named_template
from alpaca.base.find import resolve_base
from alpaca.base.headers import read_config
from alpaca.base.load import load_tokenizer
from alpaca.errors import BadSetting
from alpaca.prompts.encode import EncodedSet, encode_examples
from alpaca.prompts.example import Example
from alpaca.prompts.template import Template


@dataclass(frozen=True)
class Yardstick:
    """A base's tokenizer with the template that its prompts are made by."""

    base: Path
    tokenizer: Any
    template: Template
    cutoff_len: int
    note: str = ""

    def encode(self, examples: Sequence[Example]) -> EncodedSet:
        """The examples as training would encode them: long ones truncated, those that can't fit dropped."""
        return encode_examples(self.tokenizer, self.template, examples, cutoff_len=self.cutoff_len)


def open_yardstick(base_model: str | None, template: str, cutoff_len: int) -> Yardstick:
    """The base named, else BASE_MODEL, else the only one in weights/. Raises AlpacaError where there is none."""
    if cutoff_len < 8:
        raise BadSetting(f"cutoff_len is {cutoff_len}: at least 8")
    base = resolve_base(base_model)
    tokenizer = load_tokenizer(base)
    most = read_config(base).get("max_position_embeddings")
    note = ""
    if isinstance(most, int) and cutoff_len > most:
        note = f"cutoff_len {cutoff_len} is beyond the base's {most} positions, so {most}"
        cutoff_len = most
    return Yardstick(base, tokenizer, named_template(template, base, tokenizer)[0], cutoff_len, note)
