"""Training itself: the lean model, the trainer with its arguments, and the run from the first step to the folder."""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from alpaca.device import peak_memory
from alpaca.packed import attention
from alpaca.packed.model import PackedModel
from alpaca.progress import Say, is_main_process, is_sharded, processes
from alpaca.training import peers, sharded
from alpaca.training.checkpoints import find_checkpoint, latest_run
from alpaca.training.config import FinetuneConfig
from alpaca.training.familiarity import measure_familiarity
from alpaca.training.output_folder import begin_run, complete_promotion, promote
from alpaca.training.own_answers import Answers, answer_replay, kept_answers, write_answers
from alpaca.training.plan import Plan, estimate, forecast_of, say_replay_and_steps, validation_packs, with_own_answers
from alpaca.training.progress import StepProgress
from alpaca.training.result import Finetuned, Outcome, write_result
from alpaca.training.trainer import PackedTrainer
from alpaca.training.trial import try_largest
from alpaca.training.validation_file import FileLoss
from alpaca.words import clock, tagged


def train(plan: Plan, say: Say) -> Finetuned:
    """Carry out a plan: train (or resume from a checkpoint), write and verify the result. Raises AlpacaError."""
    output, started = Path(plan.config.output_dir), time.monotonic()
    found = peers.from_main(lambda: begin(plan, say))
    checkpoint, work = found.checkpoint, found.folder
    plan = plan.written_into(work)
    if found.answers is not None:
        plan = with_own_answers(plan, *found.answers)
        say_replay_and_steps(plan, say)
    expected = forecast_of(plan, estimate(plan))  # before the seed is set: it draws numbers to multiply
    set_seed(plan.config.seed)
    trainer = make_trainer(plan, build_model(plan))
    if is_sharded() and not trainer.is_fsdp_enabled:
        say(tagged("warning", "accelerate shards on GPUs only: here every process holds the whole base"))
    if trainer.is_fsdp_enabled:
        sharded.check_version(trainer.accelerator.state.fsdp_plugin)
        trainer.args.eval_on_start = bool(plan.validation_packs) and checkpoint is None
    tried, begun = try_largest(trainer, plan.steps, say), time.monotonic()
    before = _loss_at_the_start(trainer, plan.on_top.start if plan.on_top else "the base itself", say)
    evaluated = time.monotonic() - begun if before is not None else None
    file_before = _loss_of_the_file(plan, trainer)
    familiar = measure_familiarity(plan, trainer, say)
    if tried is not None and checkpoint is None:
        say(tagged("estimate", expected.after_trial(tried, evaluated).line()))
    if checkpoint is not None:
        say(f"resuming from {checkpoint}")
    with peers.at_hand(checkpoint) as here:
        trainer.train(resume_from_checkpoint=str(here) if here else None)
    before = _history(trainer)[0].get("eval_loss", before) if trainer.is_fsdp_enabled else before
    after = trainer.validation_loss() if plan.validation_packs else None
    file_loss = _compare_on_the_file(plan, file_before, _loss_of_the_file(plan, trainer))
    seconds, peak = time.monotonic() - started, peak_memory(plan.device)
    outcome = Outcome(before, after, _best_step(trainer), _history(trainer), seconds, peak, file_loss, familiar)
    write_result(plan, trainer, outcome, say)
    if work != output and is_main_process():
        promote(output, say)
    if before is not None and after is not None:
        say(tagged("loss", f"{before:.4f} before, {after:.4f} after, on {len(plan.validation.examples)} held-out rows"))
    if file_loss is not None:
        say(tagged("loss", file_loss.line()))
    say(tagged("done", f"{output} in {clock(outcome.seconds)}, {outcome.peak_memory / 1e9:.1f} GB at the peak"))
    return Finetuned(output, before, after, trainer.state.global_step, outcome.seconds)


@dataclass(frozen=True)
class Begun:
    """What process 0 found in the output folder, and the folder in it that the run writes into."""

    checkpoint: Path | None
    folder: Path
    answers: Answers | None  # the base's own, where the run replays them


def begin(plan: Plan, say: Say) -> Begun:
    """Find what is resumed, make the folder, and let the base give its own answers. Raises AlpacaError."""
    output = Path(plan.config.output_dir)
    complete_promotion(output)
    asked, run = plan.config.resume_from_checkpoint, latest_run(output)
    checkpoint = find_checkpoint(asked, run, plan.identity(), plan.base, plan.tuning.weights)
    kept = kept_answers(checkpoint, say) if checkpoint is not None and plan.replays_itself else None
    work = begin_run(output, checkpoint, say)
    if not plan.replays_itself:
        return Begun(checkpoint, work, None)
    if kept is not None:
        write_answers(kept[0], str(work))
    return Begun(checkpoint, work, kept or answer_replay(plan.written_into(work), say))


def build_model(plan: Plan) -> PackedModel:
    """The base in its lean form, with what is trained open to gradients."""
    attention.register()
    held = plan.held
    if is_sharded():  # whole it may fit on no GPU
        held = dataclasses.replace(held, device=torch.device("cpu"))
    return plan.tuning.build(held, taught=plan.taught is not None)


def make_trainer(plan: Plan, model: PackedModel) -> PackedTrainer:
    """The packed trainer for a plan."""
    callbacks: list[Any] = [StepProgress()]
    if plan.config.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=plan.config.early_stopping_patience))
    trainer = PackedTrainer(
        model,
        training_arguments(plan),
        examples=plan.examples,
        row_names=row_names(plan),
        steps=plan.steps,
        steps_per_epoch=plan.steps_per_epoch,
        validation=plan.validation.examples,
        validation_packs=plan.validation_packs,
        run=plan.identity(),
        callbacks=callbacks,
        tuning=plan.tuning,
        taught=plan.taught,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def row_names(plan: Plan) -> list[str]:
    """How messages call the examples that the steps' indices mean: by their row, and those for replay as such."""
    replayed = plan.replay.encoded if plan.replay else []
    return [*(str(e.row) for e in plan.train.examples), *(f"{e.row} for replay" for e in replayed)]


def training_arguments(plan: Plan) -> TrainingArguments:
    """Settings for transformers' Trainer. One of its epochs is the whole run: the plan is a flat list of steps."""
    config, validates = plan.config, bool(plan.validation_packs)
    return TrainingArguments(
        output_dir=config.output_dir,
        num_train_epochs=1,
        per_device_train_batch_size=1,
        learning_rate=plan.learning_rate[0],
        lr_scheduler_type="cosine",
        warmup_steps=plan.warmup_steps,
        weight_decay=0.0,
        max_grad_norm=1.0,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if validates else "no",
        eval_steps=plan.eval_steps,
        save_strategy="steps",
        save_steps=plan.eval_steps,
        save_total_limit=2,
        load_best_model_at_end=validates,
        metric_for_best_model="eval_loss" if validates else None,
        greater_is_better=False if validates else None,
        restore_callback_states_from_checkpoint=True,
        report_to=_reporters(config),
        run_name=config.wandb_run_name or None,
        seed=config.seed,
        use_cpu=plan.device.type == "cpu",
        ddp_backend="gloo" if processes() > 1 and plan.device.type == "cpu" else None,
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        label_names=[],
        disable_tqdm=True,
    )


def _reporters(config: FinetuneConfig) -> str:
    if config.report_to == "none":
        return "none"
    names = {"WANDB_PROJECT": config.wandb_project, "WANDB_WATCH": config.wandb_watch,
             "WANDB_LOG_MODEL": config.wandb_log_model}  # fmt: skip
    os.environ.update({name: value for name, value in names.items() if value})
    return config.report_to


def _loss_at_the_start(trainer: PackedTrainer, start: str, say: Say) -> float | None:
    """Validation loss before the first step. `start`: what it is of; a fresh adapter is without effect (B is zero)."""
    if not trainer.validation_packs or trainer.is_fsdp_enabled:  # a sharded model is whole only inside training
        return None
    loss = trainer.validation_loss()
    say(f"step    0/{len(trainer.train_dataset)}  validation loss {loss:.4f} ({start})")  # type: ignore[arg-type]
    return loss


def _loss_of_the_file(plan: Plan, trainer: PackedTrainer) -> float | None:
    """The loss on the second validation file as the model is now, None without such a file."""
    if plan.validation_file is None or trainer.is_fsdp_enabled:
        return None
    rows = plan.validation_file.examples
    return trainer.loss_on(rows, validation_packs(rows, plan.budget[0]))


def _compare_on_the_file(plan: Plan, before: float | None, after: float | None) -> FileLoss | None:
    if plan.validation_file is None or before is None or after is None:
        return None
    return FileLoss(plan.validation_file.name, plan.validation_file.rows, before, after)


def _history(trainer: PackedTrainer) -> list[dict[str, float]]:
    """Losses, learning rates, tokens, speed and memory by step, those before a resumption included."""
    return [entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]


def _best_step(trainer: PackedTrainer) -> int:
    return trainer.state.best_global_step or trainer.state.global_step
