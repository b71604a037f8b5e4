"""What transformers and PEFT answer by themselves: generate(), greedy, in fp32, one request at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from alpaca.base.load import load_model, load_tokenizer


class Oracle:
    """Answers on one base, each computed once. `adapters`: the folder that holds them."""

    def __init__(self, base: Path, adapters: Path | None = None) -> None:
        self.tokenizer = load_tokenizer(base)
        self._base, self._adapters = base, adapters
        self._models: dict[tuple[str, float], Any] = {}
        self._answers: dict[tuple[Any, ...], list[int]] = {}

    def text(
        self, prompt: str, adapter: str = "none", *, scale: float = 1.0, max_tokens: int = 24, **options: Any
    ) -> str:
        """The answer to a prompt that stands alone, without a template."""
        return self.decode(self.tokens(prompt, adapter, scale=scale, max_tokens=max_tokens, **options))

    def tokens(
        self, prompt: str, adapter: str = "none", *, scale: float = 1.0, max_tokens: int = 24, **options: Any
    ) -> list[int]:
        """The answer's tokens without the one that ends it."""
        key = (prompt, adapter, scale, max_tokens, *options.items())
        if key not in self._answers:
            ids = torch.tensor([self.tokenizer.encode(prompt, add_special_tokens=False)])
            found = self.model(adapter, scale).generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                pad_token_id=3,
                max_new_tokens=max_tokens,
                **options,
            )
            answer = found[0, ids.shape[1] :].tolist()
            self._answers[key] = answer[:-1] if answer[-1] == self.tokenizer.eos_token_id else answer
        return self._answers[key]

    def chat(self, prompt: str, adapter: str = "none", **options: Any) -> str:
        """The answer to one user message in the base's chat template."""
        messages = [{"role": "user", "content": prompt}]
        filled = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.text(filled, adapter, **options)

    def decode(self, tokens: list[int]) -> str:
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def model(self, adapter: str = "none", scale: float = 1.0) -> Any:
        """The base with an adapter as PEFT puts it on, at a strength."""
        if (adapter, scale) not in self._models:
            model: Any = load_model(self._base, "fp32")
            if adapter != "none":
                from peft import PeftModel

                assert self._adapters is not None
                model = PeftModel.from_pretrained(model, str(self._adapters / adapter)).eval()
                for module in model.modules():
                    if hasattr(module, "lora_A"):
                        module.scaling["default"] *= scale
            self._models[adapter, scale] = model
        return self._models[adapter, scale]
