"""What transformers and PEFT answer by themselves: generate(), greedy, in fp32, one request at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from alpaca.base.load import load_model, load_tokenizer
from alpaca.serving.composition import Composition, parse_composition


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
            model = self.model(adapter, scale)
            ids = torch.tensor([self.tokenizer.encode(prompt, add_special_tokens=False)], device=model.device)
            found = model.generate(
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
        """The base with an adapter as PEFT puts it on, at a strength; `a:0.5+b` is PEFT's weighted adapter of both."""
        if (adapter, scale) not in self._models:
            model: Any = load_model(self._base, "fp32")
            if adapter != "none":
                model = self._composed(model, parse_composition(adapter), scale).eval()
            self._models[adapter, scale] = model
        return self._models[adapter, scale]

    def merged(self, adapter: str) -> Any:
        """The base with the adapters of a composition merged into its weights, one after the other."""
        model: Any = load_model(self._base, "fp32")
        for part in parse_composition(adapter).parts:
            model = self._composed(model, Composition((part,)), 1.0).merge_and_unload()
        return model

    def _composed(self, model: Any, composition: Composition, scale: float) -> Any:
        """PEFT takes a weighted adapter's other settings from the first, which must not be rank-stabilised."""
        from peft import PeftModel

        assert self._adapters is not None
        folders = [str(self._adapters / part.source) for part in composition.parts]
        weights = [part.scale * scale for part in composition.parts]
        model = PeftModel.from_pretrained(model, folders[0])
        if len(folders) == 1:
            for module in model.modules():
                if hasattr(module, "lora_A"):
                    module.scaling["default"] *= weights[0]
            return model
        names = ["default", *(f"part-{number}" for number in range(2, len(folders) + 1))]
        for name, folder in zip(names[1:], folders[1:], strict=True):
            model.load_adapter(folder, adapter_name=name)
        model.add_weighted_adapter(names, weights, "together", combination_type="cat")
        model.set_adapter("together")
        return model
