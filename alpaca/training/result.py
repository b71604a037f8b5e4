"""Write the adapter folder aside, verify what was written, and move it into place; the card comes last."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from alpaca.adapter.card import CARD, Card
from alpaca.adapter.folder import ASIDE, WEIGHTS, changed_modules, load_adapter, load_tensors, verify_files
from alpaca.adapter.lora_config import CONFIG
from alpaca.errors import VerificationFailed
from alpaca.evaluation.history import Familiarity
from alpaca.progress import Say
from alpaca.training.ancestor import on_top_of
from alpaca.training.frozen import activate
from alpaca.training.plan import Plan
from alpaca.training.trainer import PackedTrainer
from alpaca.training.validation_file import FileLoss
from alpaca.words import tagged

PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors", "tokenizers")


@dataclass(frozen=True)
class Outcome:
    """What training came to. Losses are means per label over the validation rows, None without any."""

    loss_before: float | None
    loss_after: float | None
    best_step: int
    history: list[dict[str, float]]
    seconds: float
    peak_memory: int  # bytes
    file_loss: FileLoss | None = None
    familiar: Familiarity | None = None


@dataclass(frozen=True)
class Finetuned:
    """What a run left behind. `loss_before` and `loss_after` are on the validation rows, None without any."""

    adapter: Path
    loss_before: float | None
    loss_after: float | None
    steps: int
    seconds: float


def write_adapter(plan: Plan, trainer: PackedTrainer, outcome: Outcome, say: Say) -> None:
    """Save the adapter of `trainer` into the output folder and verify it.

    Raises VerificationFailed where the files do not give back what was trained; then nothing is put in place.
    """
    gathered = trainer.accelerator.get_state_dict(trainer.model_wrapped) if trainer.is_fsdp_enabled else None
    if not trainer.is_world_process_zero():
        return
    state = trainer.adapter_state(gathered)
    output = Path(plan.config.output_dir)
    aside = output / ASIDE
    shutil.rmtree(aside, ignore_errors=True)
    (aside / "report").mkdir(parents=True)
    save_file(state, str(aside / WEIGHTS), metadata={"format": "pt"})
    _write_config(plan, trainer, aside)
    card = make_card(plan, outcome)
    card.write(aside)
    (aside / "README.md").write_text(model_card(plan, card), encoding="utf-8")
    history = json.dumps({"losses": card.losses, "history": outcome.history}, indent=1)
    (aside / "report" / "training.json").write_text(history + "\n", encoding="utf-8")
    say(tagged("verified", f"{verify(plan, trainer, aside, state)}"))
    put_in_place(aside, output)


def put_in_place(aside: Path, output: Path) -> None:
    """Move the files of `aside` over those of `output`, the card last: where it is, the rest is complete.

    Meanwhile there is no configuration, without which nobody takes what is there for an adapter.
    """
    (output / CARD).unlink(missing_ok=True)
    (output / CONFIG).unlink(missing_ok=True)
    (output / "report").mkdir(exist_ok=True)
    files = [path for path in sorted(aside.rglob("*")) if path.is_file()]
    for path in sorted(files, key=lambda path: (path.name == CARD, path.name == CONFIG)):
        path.chmod(0o644)  # safetensors makes files that only their owner can read
        os.replace(path, output / path.relative_to(aside))
    shutil.rmtree(aside)


def _write_config(plan: Plan, trainer: PackedTrainer, folder: Path) -> None:
    trainer.packed.peft.peft_config["default"].save_pretrained(str(folder))
    path = folder / CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])  # PEFT keeps a set: its order is chance
    config |= {"rank_pattern": plan.spec.rank_pattern, "alpha_pattern": plan.spec.alpha_pattern}  # unescaped
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@torch.no_grad()
def verify(plan: Plan, trainer: PackedTrainer, folder: Path, state: dict[str, Tensor]) -> str:
    """Read the folder back and compare: every tensor, that B learned something, and the logits of a prompt."""
    files = verify_files(folder, plan.base)
    tensors = load_tensors(files)
    for name, tensor in state.items():
        if not torch.equal(tensors[name], tensor):
            raise VerificationFailed(f"{WEIGHTS}: {name} was not written as it was trained")
    changed = changed_modules(tensors)
    if not changed:
        raise VerificationFailed(
            "every B of the adapter is zero: training changed nothing; is learning_rate too small?"
        )
    if plan.on_top is not None and plan.on_top.continued is not None:
        start = load_tensors(plan.on_top.continued)
        if all(torch.equal(start[name].float(), tensor.float()) for name, tensor in state.items()):
            raise VerificationFailed(f"training changed nothing in {plan.on_top.name}; is learning_rate too small?")
    summary = f"{len(tensors)} tensors read back equal, {changed} of {len(files.modules)} modules changed"
    if trainer.is_fsdp_enabled:
        return summary
    peft = trainer.packed.peft.eval()
    ids = torch.tensor([plan.train.examples[0].input_ids[:64]], device=plan.device)
    trained = peft(input_ids=ids).logits
    load_adapter(peft, files, name="reloaded")  # type: ignore[arg-type]
    activate(peft, plan.on_top, "reloaded")
    difference = (peft(input_ids=ids).logits - trained).abs().max().item()
    peft.delete_adapter("reloaded")
    if difference > 1e-3 * trained.abs().max().item():
        raise VerificationFailed(f"the adapter read back gives other logits (by up to {difference:.3g})")
    return f"{summary}, logits equal (largest difference {difference:.1g})"


def make_card(plan: Plan, outcome: Outcome) -> Card:
    """The card of a finished run."""
    report, tokenizer = plan.train.report, plan.tokenizer
    data: dict[str, Any] = {
        "source": Path(plan.read.source).name,
        "sha256": plan.data_sha256,
        "rows_read": plan.read.rows_read,
        "bad_rows": plan.read.bad_rows,
        "empty_outputs": plan.read.empty_outputs,
        "duplicates": plan.read.duplicates,
        "train": report.kept,
        "validation": len(plan.validation.examples),
        "copies_of_held_out": plan.split.copies,
        "near_copies_of_held_out": plan.split.near_copies,
        "near_copies_trained_on": plan.split.near_trained,
        "truncated": report.truncated,
        "dropped": len(report.dropped_too_long) + len(report.dropped_no_label),
        "tokens_trained_on": sum(step.tokens for step in plan.steps),
        "replay": plan.replay.card(len(plan.train.examples)) if plan.replay else None,
    }
    elsewhere = ("base", "data", "template", "replay", "replay_answers", "ancestor")
    settings = {name: value for name, value in plan.identity().items() if name not in elsewhere}
    if plan.config.columns:  # the report reads the rows again
        settings["columns"] = plan.config.columns
    losses: dict[str, Any] = {"validation_before": outcome.loss_before, "validation_after": outcome.loss_after}
    if outcome.file_loss is not None:
        losses["validation_file"] = dataclasses.asdict(outcome.file_loss)
    if outcome.familiar is not None:
        losses["per_byte"] = dataclasses.asdict(outcome.familiar)
    return Card(
        base_model=plan.base_name,
        base_fingerprint=plan.fingerprint,
        template=plan.template.card(),
        special_tokens={name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "unk")},
        data=data,
        settings=settings,
        versions={"python": platform.python_version(), **_versions()},
        losses=losses,
        run={
            "steps": len(plan.steps),
            "best_step": outcome.best_step,
            "seconds": round(outcome.seconds, 1),
            "peak_memory": outcome.peak_memory,
        },
        ancestor=plan.on_top.ancestor.card() if plan.on_top else {},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def model_card(plan: Plan, card: Card) -> str:
    """README.md of the adapter folder, with the front matter that model hubs read."""
    before, after = card.losses["validation_before"], card.losses["validation_after"]
    result = "No rows were held out, so nothing is known about how well it answers."
    if before is not None and after is not None:
        result = f"Loss on {card.data['validation']} held-out rows: {before:.4f} before, {after:.4f} after."
    if (apart := card.losses.get("validation_file")) is not None:
        result += f" On {apart['rows']} rows of `{apart['source']}`: {apart['before']:.4f} and {apart['after']:.4f}."
    replay = card.data["replay"]
    mixed = f", with {replay['rows_per_epoch']} of `{replay['source']}` in each epoch," if replay else ""
    return f"""---
base_model: {card.base_model}
library_name: peft
tags: [lora, instruction-tuning]
---

# A LoRA adapter for {card.base_model}

Trained on {card.data["train"]} rows of `{card.data["source"]}`{mixed} with the prompt template
`{plan.template.name}`: rank {plan.spec.r} on {", ".join(plan.spec.target_modules)}, {card.run["steps"]} steps. {result}
{on_top_of(card)}
`{CARD}` beside this file holds the template in full, every setting, the versions and the counts. Load it with PEFT:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{card.base_model}")
model = PeftModel.from_pretrained(base, ".")
```
"""
