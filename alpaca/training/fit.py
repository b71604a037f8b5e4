"""Training itself: the lean model, the trainer with its arguments, and the run from the first step to the folder."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import EarlyStoppingCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from alpaca.base.load import load_model
from alpaca.device import peak_memory
from alpaca.packed import attention
from alpaca.packed.layers import lean_lora, make_lean
from alpaca.packed.model import PackedModel
from alpaca.packed.taught import TaughtModel
from alpaca.progress import Say, is_main_process, processes
from alpaca.training.checkpoints import find_checkpoint, latest_run
from alpaca.training.config import FinetuneConfig
from alpaca.training.familiarity import measure_familiarity
from alpaca.training.frozen import put_on_top
from alpaca.training.output_folder import begin_run, complete_promotion, promote
from alpaca.training.own_answers import answer_replay, kept_answers, write_answers
from alpaca.training.plan import Plan, estimate, forecast_of, say_replay_and_steps, validation_packs, with_own_answers
from alpaca.training.progress import StepProgress
from alpaca.training.result import Finetuned, Outcome, write_adapter
from alpaca.training.trainer import PackedTrainer
from alpaca.training.trial import try_largest
from alpaca.training.validation_file import FileLoss
from alpaca.words import clock, tagged


def train(plan: Plan, say: Say) -> Finetuned:
    """Carry out a plan: train (or resume from a checkpoint), write and verify the adapter. Raises AlpacaError."""
    output = Path(plan.config.output_dir)
    if is_main_process():
        complete_promotion(output)
    asked, run = plan.config.resume_from_checkpoint, latest_run(output)
    checkpoint = find_checkpoint(asked, run, plan.identity(), plan.base)
    kept = kept_answers(checkpoint, say) if checkpoint is not None and plan.replays_itself else None
    work = begin_run(output, checkpoint, say)
    plan = plan.written_into(work)
    started = time.monotonic()
    if plan.replays_itself:
        if kept is not None:
            write_answers(kept[0], plan.config.output_dir)
        plan = with_own_answers(plan, *(kept or answer_replay(plan, say)))
        say_replay_and_steps(plan, say)
    expected = forecast_of(plan, estimate(plan))  # before the seed is set: it draws numbers to multiply
    set_seed(plan.config.seed)
    trainer = make_trainer(plan, build_model(plan))
    tried, begun = try_largest(trainer, plan.steps, say), time.monotonic()
    before = _loss_at_the_start(trainer, plan.on_top.start if plan.on_top else "the base itself", say)
    evaluated = time.monotonic() - begun if before is not None else None
    file_before = _loss_of_the_file(plan, trainer)
    familiar = measure_familiarity(plan, trainer, say)
    if tried is not None and checkpoint is None:
        say(tagged("estimate", expected.after_trial(tried, evaluated).line()))
    if checkpoint is not None:
        say(f"resuming from {checkpoint}")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    after = trainer.validation_loss() if plan.validation_packs else None
    file_loss = _compare_on_the_file(plan, file_before, _loss_of_the_file(plan, trainer))
    seconds, peak = time.monotonic() - started, peak_memory(plan.device)
    outcome = Outcome(before, after, _best_step(trainer), _history(trainer), seconds, peak, file_loss, familiar)
    write_adapter(plan, trainer, outcome, say)
    if work != output and is_main_process():
        promote(output, say)
    if before is not None and after is not None:
        say(tagged("loss", f"{before:.4f} before, {after:.4f} after, on {len(plan.validation.examples)} held-out rows"))
    if file_loss is not None:
        say(tagged("loss", file_loss.line()))
    say(tagged("done", f"{output} in {clock(outcome.seconds)}, {outcome.peak_memory / 1e9:.1f} GB at the peak"))
    return Finetuned(output, before, after, trainer.state.global_step, outcome.seconds)


def build_model(plan: Plan) -> PackedModel:
    """The frozen base in its lean form with a fresh adapter, A random by the seed, B zero; or with what it begins."""
    attention.register()
    model = load_model(plan.base, plan.precision.precision, plan.device, plan.attention[0])
    _stay_differentiable(model)
    make_lean(model)
    model.name_or_path = plan.base_name  # PEFT writes it down, and a path of this machine means nothing elsewhere
    config = plan.config
    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=config.lora_dropout,
        target_modules=list(plan.spec.target_modules),
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        rank_pattern={re.escape(name): rank for name, rank in plan.spec.rank_pattern.items()},
        alpha_pattern={re.escape(name): alpha for name, alpha in plan.spec.alpha_pattern.items()},
        base_model_name_or_path=plan.base_name,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(config.seed)
    dense = plan.precision.precision in ("fp32", "bf16")  # a quantised layer is a Linear, too, but not of numbers
    peft = get_peft_model(model, lean_lora(lora) if dense else lora)
    if plan.on_top is not None:
        put_on_top(peft, plan.on_top)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return TaughtModel(peft) if plan.taught else PackedModel(peft)


def _stay_differentiable(model: torch.nn.Module) -> None:
    """On processors with AVX512-BF16, bitsandbytes turns nf4 weights into a layout for inference at the first
    evaluation, for good; after it no gradient passes through them, and nothing says so."""
    layers: Any = model.modules()
    for layer in layers:
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


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
    """The loss on the second validation file as the adapter is now, None without such a file."""
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
