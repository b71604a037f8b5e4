"""Tuning by LoRA: the base is frozen, and small matrices beside its layers are trained. The result is an adapter."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from alpaca.adapter.card import CARD, Card
from alpaca.adapter.folder import WEIGHTS, changed_modules, load_adapter, load_tensors, verify_files
from alpaca.adapter.lora_config import CONFIG, LoraSpec
from alpaca.base.precision import Choice, choose_precision
from alpaca.errors import VerificationFailed
from alpaca.prompts.template import Template
from alpaca.training import preflight
from alpaca.training.ancestor import OnTop
from alpaca.training.config import FinetuneConfig
from alpaca.training.frozen import activate, put_on_top
from alpaca.training.served import serving_notes
from alpaca.training.tuning import Held, check_logits

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from alpaca.packed.model import PackedModel


@dataclass(frozen=True)
class LoraTuning:
    """An adapter of this `spec`, as the settings want it."""

    base: Path
    spec: LoraSpec
    config: FinetuneConfig
    on_top: OnTop | None = None  # the adapter that it begins with

    noun = "adapter"
    weights = WEIGHTS
    parts: ClassVar[tuple[str, ...]] = (WEIGHTS, CONFIG)
    beside_memory = (
        "Lower --micro_batch_tokens or --cutoff_len, add --gradient_checkpointing, or hold the base in "
        "--quantization nf4"
    )
    instead = "Hold the base in --quantization nf4, lower --lora_r, or take a smaller base"
    smaller = "lower --lora_r"

    @classmethod
    def of(cls, config: FinetuneConfig, base: Path, on_top: OnTop | None = None) -> LoraTuning:
        """What the settings ask for, or the adapter that is gone on with has. Raises BadSetting for layers that the
        base does not have."""
        if on_top is not None and on_top.spec is not None:
            return cls(base, on_top.spec, config, on_top)
        targets = preflight.resolve_targets(base, config.lora_target_modules)
        rs, dora = config.use_rslora, config.use_dora
        return cls(
            base, LoraSpec(config.lora_r, config.lora_alpha, targets, use_rslora=rs, use_dora=dora), config, on_top
        )

    def choose_precision(self, asked: str, device: torch.device) -> Choice:
        return choose_precision(self.base, asked, device, training=True)

    def default_rate(self, width: int) -> tuple[float, str]:
        return preflight.default_learning_rate(width), f"for a base {width} wide"

    def count(self) -> int:
        return preflight.trainable_parameters(self.base, self.spec)

    @property
    def what(self) -> str:
        return f"rank {self.spec.r} on {', '.join(self.spec.target_modules)}"

    def notes(self) -> Iterator[str]:
        yield from serving_notes(self.base, self.spec)

    def cost(self, precision: str, checkpointing: bool) -> preflight.Cost:
        return preflight.lora_cost(self.base, self.spec, precision, checkpointing)

    # --- the model ------------------------------------------------------------------------------------------------
    def build(self, held: Held, *, taught: bool) -> PackedModel:
        """The frozen base in its lean form with a fresh adapter (A by the seed, B zero) or what it begins with."""
        import torch
        from peft import LoraConfig, get_peft_model

        from alpaca.base.load import load_model
        from alpaca.packed.layers import lean_lora, make_lean
        from alpaca.packed.model import PackedModel
        from alpaca.packed.taught import TaughtModel

        model = load_model(held.base, held.precision, held.device, held.attention)
        _stay_differentiable(model)
        make_lean(model)
        model.name_or_path = held.name  # PEFT writes it down, and a path of this machine means nothing elsewhere
        config, spec = self.config, self.spec
        lora = LoraConfig(
            r=spec.r,
            lora_alpha=spec.lora_alpha,  # type: ignore[arg-type]
            lora_dropout=config.lora_dropout,
            target_modules=list(spec.target_modules),
            use_rslora=spec.use_rslora,
            use_dora=spec.use_dora,
            rank_pattern={re.escape(name): rank for name, rank in spec.rank_pattern.items()},
            alpha_pattern={re.escape(name): alpha for name, alpha in spec.alpha_pattern.items()},
            base_model_name_or_path=held.name,
            task_type="CAUSAL_LM",
        )
        torch.manual_seed(config.seed)
        dense = held.precision in ("fp32", "bf16")  # a quantised layer is a Linear, too, but not of numbers
        peft = get_peft_model(model, lean_lora(lora) if dense else lora)
        if self.on_top is not None:
            put_on_top(peft, self.on_top)
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        return TaughtModel(peft) if taught else PackedModel(peft)

    def state(self, model: PackedModel, gathered: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The adapter's tensors under PEFT's names."""
        from peft import get_peft_model_state_dict

        whole: Any = gathered
        if gathered is not None:
            whole = {name.removeprefix("peft."): tensor for name, tensor in gathered.items()}
        state = get_peft_model_state_dict(model.peft, state_dict=whole, save_embedding_layers=False)
        return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}

    def names(self, model: PackedModel, trained: Iterable[str]) -> dict[str, str]:
        from peft import get_peft_model_state_dict

        own: Any = {name.removeprefix("peft."): name for name in trained}  # it looks at the keys only
        return dict(get_peft_model_state_dict(model.peft, state_dict=own, save_embedding_layers=False))

    def load(self, model: PackedModel, state: Mapping[str, Tensor]) -> None:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model.peft, dict(state))

    # --- the result -----------------------------------------------------------------------------------------------
    def write(self, model: PackedModel, state: Mapping[str, Tensor], folder: Path, tokenizer: Any, held: Held,
              template: Template) -> None:  # fmt: skip
        from safetensors.torch import save_file

        save_file(dict(state), str(folder / WEIGHTS), metadata={"format": "pt"})
        model.peft.peft_config["default"].save_pretrained(str(folder))
        path = folder / CONFIG
        config = json.loads(path.read_text(encoding="utf-8"))
        config["target_modules"] = sorted(config["target_modules"])  # PEFT keeps a set: its order is chance
        config |= {"rank_pattern": self.spec.rank_pattern, "alpha_pattern": self.spec.alpha_pattern}  # unescaped
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def verify(self, model: PackedModel, state: Mapping[str, Tensor], folder: Path, held: Held, prompt: list[int], *,
               whole: bool) -> str:  # fmt: skip
        import torch

        files = verify_files(folder, held.base)
        tensors = load_tensors(files)
        for name, tensor in state.items():
            if not torch.equal(tensors[name], tensor):
                raise VerificationFailed(f"{WEIGHTS}: {name} was not written as it was trained")
        changed = changed_modules(tensors)
        if not changed:
            raise VerificationFailed(
                "every B of the adapter is zero: training changed nothing; is learning_rate too small?"
            )
        self._check_went_on(state)
        summary = f"{len(tensors)} tensors read back equal, {changed} of {len(files.modules)} modules changed"
        if not whole:
            return summary
        peft = model.peft.eval()
        ids = torch.tensor([prompt], device=held.device)
        trained = peft(input_ids=ids).logits
        load_adapter(peft, files, name="reloaded")  # type: ignore[arg-type]
        activate(peft, self.on_top, "reloaded")
        difference = check_logits(trained, peft(input_ids=ids).logits, 1e-3, "the adapter")
        peft.delete_adapter("reloaded")
        return f"{summary}, logits equal (largest difference {difference:.1g})"

    def _check_went_on(self, state: Mapping[str, Tensor]) -> None:
        if self.on_top is None or self.on_top.continued is None:
            return
        start = load_tensors(self.on_top.continued.files)
        if all(start[name].float().equal(tensor.float()) for name, tensor in state.items()):
            raise VerificationFailed(f"training changed nothing in {self.on_top.name}; is learning_rate too small?")

    def readme(self, card: Card, said: str) -> str:
        return f"""---
base_model: {card.base_model}
library_name: peft
tags: [lora, instruction-tuning]
---

# A LoRA adapter for {card.base_model}

{said}

`{CARD}` beside this file holds the template in full, every setting, the versions and the counts. Load it with PEFT:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{card.base_model}")
model = PeftModel.from_pretrained(base, ".")
```
"""


def _stay_differentiable(model: Any) -> None:
    """On processors with AVX512-BF16, bitsandbytes turns nf4 weights into a layout for inference at the first
    evaluation, for good; after it no gradient passes through them, and nothing says so."""
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
