"""What a person sees while it trains: a bar on a terminal, a line per step in a log."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alpaca.words import clock


class StepProgress(TrainerCallback):
    """Shows step, epoch, loss, learning rate, tokens/s and the time left."""

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None
        self.started, self.first_step = 0.0, 0
        self.total = 0
        self.logged = 0.0
        self.evaluations: list[float] = []  # seconds of each

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.started, self.first_step, self.total = time.monotonic(), state.global_step, state.max_steps
        self.logged = self.started  # an evaluation may come before the first step
        if state.is_world_process_zero and sys.stderr.isatty():
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", dynamic_ncols=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.bar is not None:
            self.bar.update()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if not logs or not state.is_world_process_zero:
            return
        if "loss" in logs:
            self.logged = time.monotonic()
            self._show_step(args, state, logs)
        elif "eval_loss" in logs:
            self._say(f"step {state.global_step:>4}/{self.total}  validation loss {logs['eval_loss']:.4f}")

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.evaluations.append(time.monotonic() - self.logged)  # it follows the log of its step

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def _show_step(self, args: TrainingArguments, state: TrainerState, logs: dict[str, float]) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(
                f"epoch {state.epoch:.2f}  loss {logs['loss']:.3f}  lr {logs['learning_rate']:.1e}  "
                f"{logs['tokens_per_second']:.0f} tok/s"
            )
            return
        self._say(
            f"step {state.global_step:>4}/{self.total}  epoch {state.epoch:.2f}  loss {logs['loss']:.4f}  "
            f"lr {logs['learning_rate']:.2e}  {logs['tokens_per_second']:.0f} tok/s  {self._left(args, state)} left"
        )

    def _left(self, args: TrainingArguments, state: TrainerState) -> str:
        done, every = max(1, state.global_step - self.first_step), int(args.eval_steps or 0)
        step = (self.logged - self.started - sum(self.evaluations)) / done
        evaluation = sum(self.evaluations) / max(1, len(self.evaluations))
        to_come = -(-self.total // every) - (state.global_step - 1) // every if every else 0
        return clock(step * (self.total - state.global_step) + evaluation * to_come)

    def _say(self, line: str) -> None:
        if self.bar is not None:
            self.bar.write(line, file=sys.stdout)
        else:
            print(line, flush=True)
