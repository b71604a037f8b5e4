"""transformers' Trainer, taught to take a step made of packs. Its loop calls what is extended here in this order:

    _load_from_checkpoint         where a run is resumed: the trained weights
    get_train_dataloader          the planned steps, each an item
    _load_callback_state          of a resumed run: which checkpoint was the best
    create_scheduler              the learning rate of every step
    _load_optimizer_and_scheduler     of a resumed run; shared out again where the model is sharded
    for each step:
        _get_num_items_in_batch   nothing: a Step knows its labels
        training_step             forward and backward over its packs
        floating_point_ops        nothing: preflight counts them
        _clip_grad_norm           stops at a gradient that is not finite; then the optimizer takes the step
        log                       loss, tokens, speed and memory
        evaluate                  every eval_steps: the loss over the validation rows
        _save_checkpoint          after it: written aside, then renamed
            _get_output_dir       aside
            save_model            gathered first where the model is sharded
            _save                 the trained weights and what identifies the run
            _save_optimizer_and_scheduler     gathered, too
            _save_rng_state       the generators of every process
    _load_best_model              the weights of the best evaluation

An item of the data loader is a whole optimizer step (`packing.Step`). `training_step` runs its packs one after
another, each loss divided by the labels of the *whole* step, so that the gradient is the token-weighted mean over
`batch_size` examples however they were packed and over however many processes they were spread.
"""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from alpaca.device import peak_memory
from alpaca.errors import NonFiniteLoss
from alpaca.packed.batch import collate
from alpaca.packed.model import PackedModel
from alpaca.packed.packing import Pack, Step
from alpaca.packed.taught import collate_taught
from alpaca.prompts.encode import Encoded
from alpaca.training import checkpoints, peers, sharded
from alpaca.training.memory import explain_memory, memory_now
from alpaca.training.tuning import Tuning


class PackedTrainer(Trainer):
    """Trains a PackedModel on planned steps. `run` identifies data and settings; it is kept in each checkpoint."""

    def __init__(
        self,
        model: PackedModel,
        args: TrainingArguments,
        *,
        examples: Sequence[Encoded],
        row_names: Sequence[str],
        steps: Sequence[Step],
        steps_per_epoch: int,
        validation: Sequence[Encoded],
        validation_packs: Sequence[Pack],
        run: dict[str, Any],
        callbacks: list[Any],
        tuning: Tuning,
        taught: tuple[int, float] | None = None,
    ) -> None:
        """`taught`: the base teaches the examples from this index on, with this weight (`packed.taught`)."""
        super().__init__(
            model=model, args=args, train_dataset=steps, eval_dataset=validation or None, callbacks=callbacks
        )  # fmt: skip
        self.packed, self.tuning = model, tuning
        self.examples, self.row_names, self.steps_per_epoch = examples, row_names, steps_per_epoch
        self.validation, self.validation_packs = validation, validation_packs
        self.run, self.taught = run, taught
        self.last_loaded: Path | None = None
        self.tokens_since_log, self.time_of_log = 0, time.monotonic()

    # --- a step ---------------------------------------------------------------------------------------------------
    def get_train_dataloader(self) -> DataLoader[Step]:
        """The planned steps in their order; every process gets all of them and takes its own share of each."""
        steps: Any = self.train_dataset
        return DataLoader(steps, batch_size=1, sampler=SequentialSampler(steps), collate_fn=_only)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> None:
        return None  # a Step knows its labels

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward over this process's packs; returns the step's mean loss per label (its share × N)."""
        model.train()
        step: Step = inputs
        packs = step.packs[self.args.process_index]
        weight = self.args.world_size / max(1, step.labels)  # DDP and FSDP average over processes
        total, less = torch.zeros((), device=self.args.device), self.tuning.beside_memory
        for number, pack in enumerate(packs):
            tokens = sum(len(self.examples[index]) for index in pack)
            with self._gradients_stay_here(model, last=number == len(packs) - 1), explain_memory(tokens, less):
                loss = model(**self.inputs(pack, beside=[rank[number] for rank in step.packs]))
                rows = [self.row_names[index] for index in pack]
                what = f"the loss became {{}} at step {self.state.global_step + 1}"
                self._check_finite(loss, rows, what, " That step was not applied.")
                self.accelerator.backward(loss * weight)
            total += loss.detach()
        self.tokens_since_log += step.tokens
        return total * weight

    def inputs(self, pack: Pack, beside: Sequence[Pack]) -> dict[str, Any]:
        """A pack as the model takes it. `beside`: the packs that all processes have at the same time, this one among
        them: the base reads in all of them or in none, because sharded training counts forward passes."""
        device = self.args.device
        given = collate(pack, self.examples).inputs(device)
        if self.taught is not None and any(index >= self.taught[0] for packs in beside for index in packs):
            given["taught"] = collate_taught(pack, self.examples, *self.taught).inputs(device)
        return given

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # preflight counts them: the library would take a step for one batch of labels

    def _gradients_stay_here(self, model: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if last else self.accelerator.no_sync(model)

    def _check_finite(self, loss: Tensor, rows: Sequence[str], what: str, so: str = "") -> None:
        if not torch.isfinite(loss):
            raise NonFiniteLoss(
                f"{what.format(loss.item())}, in the micro-batch of rows {', '.join(rows)}.{so} "
                "Look at those rows, lower --learning_rate, or try --quantization fp32"
            )

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        if not torch.isfinite(torch.as_tensor(norm)):
            raise NonFiniteLoss(
                f"the gradient became {float(norm)} at step {self.state.global_step + 1}, though its loss is finite. "
                "That step was not applied. Lower --learning_rate, or try --quantization fp32"
            )
        return norm

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """Linear warm-up that begins above 0 (a step at rate 0 would be wasted), then a cosine down to 0."""
        rate = partial(rate_factor, warmup=self.args.get_warmup_steps(num_training_steps), total=num_training_steps)
        scheduler = LambdaLR(optimizer or self.optimizer, rate)  # type: ignore[arg-type]
        self.lr_scheduler, self._created_lr_scheduler = scheduler, True
        return scheduler

    # --- evaluation -----------------------------------------------------------------------------------------------
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Token-weighted mean loss over the validation rows, as `eval_loss`; told to the callbacks and the log."""
        metrics = {"eval_loss": self.validation_loss()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._memory_tracker.stop_and_update_metrics(metrics)
        return metrics

    def validation_loss(self) -> float:
        """Mean loss per label over the validation rows."""
        return self.loss_on(self.validation, self.validation_packs)

    @torch.no_grad()
    def loss_on(self, examples: Sequence[Encoded], packs: Sequence[Pack], *, finite: bool = True) -> float:
        """Mean loss per label over `examples`, shared out over the processes: as many packs for each of them. Raises
        NonFiniteLoss where it has to be `finite` and is not."""
        self.model_wrapped.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        for pack in packs[self.args.process_index :: self.args.world_size]:
            batch = collate(pack, examples)
            loss = self.model_wrapped(**batch.inputs(self.args.device))
            if finite:
                rows = [str(examples[index].row) for index in pack]
                self._check_finite(loss, rows, f"the validation loss became {{}} after step {self.state.global_step}")
            sums += torch.tensor([loss.item(), len(batch.targets)])
        self.model_wrapped.train()
        if self.args.world_size > 1:
            sums = self.accelerator.reduce(sums.to(self.args.device), reduction="sum").cpu()
        return float(sums[0] / sums[1].clamp(min=1))

    # --- log ------------------------------------------------------------------------------------------------------
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add tokens, speed and memory in bytes; and the epoch is the data's, not that of the flat list of steps."""
        self.state.epoch = self.state.global_step / self.steps_per_epoch
        if "loss" in logs:
            now = time.monotonic()
            logs["tokens"] = self.tokens_since_log
            logs["memory"], logs["memory_now"] = peak_memory(self.args.device), memory_now(self.args.device)
            logs["tokens_per_second"] = round(self.tokens_since_log / max(1e-9, now - self.time_of_log), 1)
            self.tokens_since_log, self.time_of_log = 0, now
        super().log(logs, None)

    # --- checkpoints ----------------------------------------------------------------------------------------------
    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Let the library write the checkpoint aside, then put it in place: a process that is killed in the middle of
        a save leaves the one before."""
        output, step = Path(str(self.args.output_dir)), self.state.global_step
        if self.args.should_save:
            checkpoints.begin(output, step)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        if self.state.best_global_step == step:  # the library has written down the hidden name
            self.state.best_model_checkpoint = str(output / checkpoints.name_of(step))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.state.save_to_json(str(checkpoints.written(output, step) / checkpoints.STATE))
            checkpoints.finish(
                output, step, best=self.state.best_model_checkpoint, keep=self.args.save_total_limit or 1
            )
        self.accelerator.wait_for_everyone()

    def _get_output_dir(self, trial: Any) -> str:
        return str(checkpoints.aside(Path(str(self.args.output_dir)), self.state.global_step))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self.is_fsdp_enabled:  # what it would do depends on accelerate's settings
            self._save(output_dir, sharded.trained_state(self.model_wrapped))
        else:
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        assert self.lr_scheduler is not None
        state = sharded.optimizer_state(self.model_wrapped, self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_fsdp_enabled or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        assert self.lr_scheduler is not None
        state = torch.load(Path(checkpoint) / OPTIMIZER_NAME, weights_only=True)
        sharded.load_optimizer(self.model_wrapped, self.optimizer, state)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write the weights that are trained, and what identifies the run."""
        if not self.args.should_save:
            return
        folder = Path(str(output_dir or self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.trained_state(state_dict), str(folder / self.tuning.weights), metadata={"format": "pt"})
        (folder / checkpoints.RUN_FILE).write_text(json.dumps(self.run, indent=2), encoding="utf-8")

    def trained_state(self, gathered: dict[str, Any] | None = None) -> dict[str, Tensor]:
        """What is trained, on the CPU. `gathered`: the whole of a sharded model."""
        return self.tuning.state(self.packed, gathered)

    def _save_rng_state(self, output_dir: str) -> None:
        """Process 0 writes the generators of all of them."""
        if self.args.world_size == 1:
            super()._save_rng_state(output_dir)
            return
        with tempfile.TemporaryDirectory() as own:
            super()._save_rng_state(own)
            states = peers.everyone({path.name: path.read_bytes() for path in Path(own).iterdir()})
        if self.args.should_save:
            for name, state in (entry for process in states for entry in process.items()):
                (Path(output_dir) / name).write_bytes(state)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.last_loaded = Path(resume_from_checkpoint)
        weights = self.last_loaded / self.tuning.weights
        state = peers.from_main(lambda: load_file(str(weights)))
        if self.is_fsdp_enabled:
            trained = [name for name, weight in self.model_wrapped.named_parameters() if weight.requires_grad]
            own = self.tuning.names(self.packed, trained)
            sharded.load_trained(self.model_wrapped, {own[name]: tensor for name, tensor in state.items()})
        else:
            self.tuning.load(self.packed, state)

    def _load_callback_state(self) -> None:
        """With the state of a resumed run: the library forgets a best checkpoint that this machine does not have."""
        super()._load_callback_state()
        self.state.best_model_checkpoint = peers.from_main(lambda: self.state.best_model_checkpoint)

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint is None:
            return
        best = Path(self.state.best_model_checkpoint)
        if not best.is_dir() and self.last_loaded is not None:  # its folder was moved since it was resumed from
            best = self.last_loaded.parent / best.name
        self._load_from_checkpoint(str(best))


def rate_factor(step: int, warmup: int, total: int) -> float:
    """The share of the peak learning rate at `step`, from 0."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _only(items: list[Step]) -> Step:
    return items[0]
