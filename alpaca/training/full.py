"""Tuning of all weights, as Stanford's Alpaca was made. The result is a model of its own, a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from alpaca.adapter.card import CARD, Card
from alpaca.base.ends import end_ids
from alpaca.base.headers import count_layer_weights, count_weights, tensor_entries
from alpaca.base.precision import Choice, native_precision
from alpaca.base.skeleton import model_config
from alpaca.convert.model_folder import STORED, TEMPLATE, TOKENIZER, write_settings, write_tokenizer, write_weights
from alpaca.convert.safetensors_writer import TensorPlan
from alpaca.errors import ExportRefused, VerificationFailed
from alpaca.prompts.chat import ChatTemplate
from alpaca.prompts.jinja import begins_with_bos, chat_template
from alpaca.prompts.template import Template
from alpaca.training import preflight
from alpaca.training.config import FinetuneConfig
from alpaca.training.served import unserved
from alpaca.training.tuning import Held, check_logits

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from alpaca.packed.model import PackedModel

WEIGHTS, CONFIG = "model.safetensors", "config.json"
HEAD = "lm_head.weight"
LESS_THAN_LORA = 10  # a tenth of LoRA's learning rate
# How far logits may differ once the weights were rounded to bf16, in which they were computed with anyhow: norms and
# embeddings were not.
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}


@dataclass(frozen=True)
class FullTuning:
    """Every weight of `base`."""

    base: Path
    config: FinetuneConfig

    noun = "model"
    weights = WEIGHTS
    parts: ClassVar[tuple[str, ...]] = (
        "model*.safetensors", "model.safetensors.index.json", *TOKENIZER, TEMPLATE, "generation_config.json", CONFIG,
    )  # fmt: skip
    beside_memory = (
        "Lower --micro_batch_tokens or --cutoff_len, add --gradient_checkpointing, or train an adapter "
        "(--finetuning_type lora), which takes a fraction"
    )
    instead = (
        "Train an adapter (--finetuning_type lora), take a smaller base, or shard it over several GPUs "
        "(accelerate launch --use_fsdp)"
    )
    smaller = "train an adapter (--finetuning_type lora)"
    what = "all weights"

    def choose_precision(self, asked: str, device: torch.device) -> Choice:
        """bf16: products in it, weights in fp32. Quantised weights can't be trained (the settings refuse them)."""
        if asked != "auto":
            return Choice(asked, "as asked")
        precision = native_precision(device)
        why = "weights are fp32, products are bf16" if precision == "bf16" else "this processor has no fast bf16"
        return Choice(precision, f"all weights are trained: {why}")

    def default_rate(self, width: int) -> tuple[float, str]:
        """A tenth of LoRA's: Schulman et al., "LoRA Without Regret" (2025), find the best rate of LoRA to be about ten
        times that of full tuning, whatever the model. 2.8e-5 for a 7B, where Stanford took 2e-5."""
        rate = float(f"{preflight.default_learning_rate(width) / LESS_THAN_LORA:.2g}")
        return rate, f"all weights of a base {width} wide want a tenth of LoRA's"

    def count(self) -> int:
        return count_weights(self.base)

    def notes(self) -> Iterator[str]:
        if reason := unserved(self.base):
            yield f"this engine won't serve what is trained: {reason}. There is no report either"

    def cost(self, precision: str, checkpointing: bool) -> preflight.Cost:
        """Weights, gradients and moments in fp32, and the matrices' rounded copies. 6 FLOP a weight and token: forward,
        and backward to activations and to weights; 8 with activations computed again."""
        rounded = 2 * count_layer_weights(self.base) if precision == "bf16" else 0
        held = self.count() * preflight.TRAINED_BYTES + rounded
        activations = preflight.whole_activation_bytes(model_config(self.base).to_dict(), precision, checkpointing)
        return preflight.Cost(held, 8 if checkpointing else 6, 6, activations)

    # --- the model ------------------------------------------------------------------------------------------------
    def build(self, held: Held, *, taught: bool) -> PackedModel:
        """The base in its lean form, in fp32, every weight open to gradients. No base is left that could teach."""
        import torch

        from alpaca.base.load import load_model
        from alpaca.packed.layers import make_lean
        from alpaca.packed.whole import WholeModel

        model = load_model(held.base, "fp32", held.device, held.attention)
        make_lean(model)
        model.requires_grad_(True)
        if self.config.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return WholeModel(model, torch.bfloat16 if held.precision == "bf16" else torch.float32)

    def state(self, model: PackedModel, gathered: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """All weights by transformers' names, in fp32; a head that is tied to the embeddings is not there twice."""
        named: Mapping[str, Any] = model.base.state_dict() if gathered is None else gathered
        tied = bool(model.config.tie_word_embeddings)
        found = {name.removeprefix("peft."): tensor.detach().cpu().contiguous() for name, tensor in named.items()}
        return {name: tensor for name, tensor in found.items() if not (tied and name == HEAD)}

    def names(self, model: PackedModel, trained: Iterable[str]) -> dict[str, str]:
        return {name.removeprefix("peft."): name for name in trained}

    def load(self, model: PackedModel, state: Mapping[str, Tensor]) -> None:
        model.base.load_state_dict(state, strict=False)  # a tied head is not in it

    # --- the result -----------------------------------------------------------------------------------------------
    def write(self, model: PackedModel, state: Mapping[str, Tensor], folder: Path, tokenizer: Any, held: Held,
              template: Template) -> None:  # fmt: skip
        """Weights in the precision that they were computed with, in files of at most 5 GB."""
        plans = [TensorPlan(name, tuple(tensor.shape), STORED[held.precision]) for name, tensor in state.items()]
        write_weights(plans, lambda names: (_stored(state[name], held.precision) for name in names), folder, "model")
        write_settings(held.base, tokenizer, end_ids(held.base, tokenizer, template.turn_end), held.precision, folder)
        write_tokenizer(held.base, tokenizer, _jinja(template, tokenizer), folder)

    def verify(self, model: PackedModel, state: Mapping[str, Tensor], folder: Path, held: Held, prompt: list[int], *,
               whole: bool) -> str:  # fmt: skip
        import torch

        from alpaca.base.check import check_base
        from alpaca.base.load import load_model

        check_base(folder)
        found, changed, before = 0, 0, _Tensors(held.base)
        for name, tensor in _Tensors(folder).items():
            if name not in state or not torch.equal(tensor, _stored(state[name], held.precision)):
                raise VerificationFailed(f"{WEIGHTS}: {name} was not written as it was trained")
            found += 1
            was = before.find(name)
            changed += was is None or not torch.equal(was.to(tensor.dtype), tensor)
        if found != len(state):
            raise VerificationFailed(f"{WEIGHTS} holds {found} of {len(state)} tensors")
        if not changed:
            raise VerificationFailed("no weight differs from the base's: training changed nothing; is learning_rate "
                                     "too small?")  # fmt: skip
        summary = f"{found} tensors read back equal, {changed} of them changed"
        if not whole:
            return summary
        ids = torch.tensor([prompt], device=held.device)
        low = held.precision == "bf16"
        with torch.autocast(held.device.type, dtype=torch.bfloat16, enabled=low):
            trained = model.base.eval()(input_ids=ids).logits.float()
        reloaded = load_model(folder, held.precision, held.device)(input_ids=ids).logits.float()
        difference = check_logits(trained, reloaded, TOLERANCE[held.precision], "the model")
        but = " but for the rounding to bf16" if low else ""
        top = trained.abs().max().item()
        return f"{summary}, logits equal{but} (largest difference {difference:.1g} of {top:.2g})"

    def readme(self, card: Card, said: str) -> str:
        return f"""---
base_model: {card.base_model}
library_name: transformers
tags: [instruction-tuning]
---

# {card.base_model}, all weights tuned

{said}

`{CARD}` beside this file holds the template in full, every setting, the versions and the counts. Load it with
transformers:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
```
"""


def _stored(tensor: Tensor, precision: str) -> Tensor:
    """As it is written: in the precision that was computed with."""
    import torch

    return tensor.to(torch.bfloat16 if precision == "bf16" else torch.float32)


class _Tensors:
    """The tensors of a folder, read one at a time."""

    def __init__(self, folder: Path) -> None:
        self._files = {entry.name: entry.file for entry in tensor_entries(folder)}

    def items(self) -> Iterator[tuple[str, Tensor]]:
        for name in self._files:
            if (tensor := self.find(name)) is not None:
                yield name, tensor

    def find(self, name: str) -> Tensor | None:
        """The tensor of this name, None where there is none."""
        from safetensors import safe_open

        if name not in self._files:
            return None
        with safe_open(str(self._files[name]), framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor


def _jinja(template: Template, tokenizer: Any) -> str | None:
    """The chat template that other tools find in the folder; None for the base's own."""
    if isinstance(template, ChatTemplate):
        return None
    try:
        return chat_template(template, begins_with_bos=begins_with_bos(tokenizer))
    except ExportRefused:  # one that no messages can be put into: then only this project asks in it, by the card
        return None
