"""Write the folder of a result aside, verify what was written, and move it into place; the card comes last."""

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
from torch import Tensor

from alpaca.adapter.card import CARD, Card
from alpaca.adapter.folder import ASIDE
from alpaca.adapter.lora_config import CONFIG
from alpaca.evaluation.history import Familiarity
from alpaca.progress import Say
from alpaca.training import sharded
from alpaca.training.ancestor import on_top_of
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


def write_result(plan: Plan, trainer: PackedTrainer, outcome: Outcome, say: Say) -> None:
    """Save what `trainer` trained into the output folder and verify it.

    Raises VerificationFailed where the files do not give back what was trained; then nothing is put in place.
    """
    gathered = sharded.trained_state(trainer.model_wrapped) if trainer.is_fsdp_enabled else None
    if not trainer.is_world_process_zero():
        return
    state = trainer.trained_state(gathered)
    output = Path(plan.config.output_dir)
    aside = output / ASIDE
    shutil.rmtree(aside, ignore_errors=True)
    (aside / "report").mkdir(parents=True)
    plan.tuning.write(trainer.packed, state, aside, plan.tokenizer, plan.held, plan.template)
    card = make_card(plan, outcome)
    card.write(aside)
    (aside / "README.md").write_text(plan.tuning.readme(card, _said(plan, card)), encoding="utf-8")
    history = json.dumps({"losses": card.losses, "history": outcome.history}, indent=1)
    (aside / "report" / "training.json").write_text(history + "\n", encoding="utf-8")
    say(tagged("verified", f"{verify(plan, trainer, aside, state)}"))
    put_in_place(aside, output, plan.tuning.parts[-1])


@torch.no_grad()
def verify(plan: Plan, trainer: PackedTrainer, folder: Path, state: dict[str, Tensor]) -> str:
    """Read the folder back and compare: every tensor, that something was learned, and the logits of a prompt."""
    prompt = plan.train.examples[0].input_ids[:64]
    whole = not trainer.is_fsdp_enabled
    return plan.tuning.verify(trainer.packed, state, folder, plan.held, prompt, whole=whole)


def put_in_place(aside: Path, output: Path, config: str = CONFIG) -> None:
    """Move the files of `aside` over those of `output`, the card last: where it is, the rest is complete.

    Meanwhile there is no configuration, `config`, without which nobody takes what is there for a result.
    """
    (output / CARD).unlink(missing_ok=True)
    (output / config).unlink(missing_ok=True)
    (output / "report").mkdir(exist_ok=True)
    files = [path for path in sorted(aside.rglob("*")) if path.is_file()]
    for path in sorted(files, key=lambda path: (path.name == CARD, path.name == config)):
        path.chmod(0o644)  # safetensors makes files that only their owner can read
        os.replace(path, output / path.relative_to(aside))
    shutil.rmtree(aside)


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


def _said(plan: Plan, card: Card) -> str:
    """How it was trained and what it came to, for README.md."""
    before, after = card.losses["validation_before"], card.losses["validation_after"]
    result = "No rows were held out, so nothing is known about how well it answers."
    if before is not None and after is not None:
        result = f"Loss on {card.data['validation']} held-out rows: {before:.4f} before, {after:.4f} after."
    if (apart := card.losses.get("validation_file")) is not None:
        result += f" On {apart['rows']} rows of `{apart['source']}`: {apart['before']:.4f} and {apart['after']:.4f}."
    replay = card.data["replay"]
    mixed = f", with {replay['rows_per_epoch']} of `{replay['source']}` in each epoch," if replay else ""
    return (
        f"Trained on {card.data['train']} rows of `{card.data['source']}`{mixed} with the prompt template\n"
        f"`{plan.template.name}`: {plan.tuning.what}, {card.run['steps']} steps. {result}\n{on_top_of(card)}"
    ).rstrip()
