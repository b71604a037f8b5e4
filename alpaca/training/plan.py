"""Everything about a fine-tune that is decided before the base's weights are loaded."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from alpaca.adapter.lora_config import LoraSpec
from alpaca.base.find import resolve_base
from alpaca.base.headers import fingerprint, read_config
from alpaca.base.load import load_tokenizer
from alpaca.base.precision import Choice, choose_precision
from alpaca.data.report import ReadReport
from alpaca.data.split import Split
from alpaca.device import free_memory, pick_device
from alpaca.errors import BadSetting
from alpaca.packed.attention import choose_attention
from alpaca.packed.batch import label_count
from alpaca.packed.packing import Pack, Step, fill_packs, plan_steps
from alpaca.progress import Say, processes
from alpaca.prompts.encode import Encoded, EncodedSet
from alpaca.prompts.example import Example
from alpaca.prompts.find import load_template
from alpaca.prompts.template import Template
from alpaca.training import disk, preflight, teaching, untrained
from alpaca.training.config import FinetuneConfig
from alpaca.training.forecast import FORWARD, Forecast, evaluation_steps, report_seconds
from alpaca.training.memory import LESS, memory_now
from alpaca.training.remedies import choose_kl, choose_ratio, choose_self
from alpaca.training.replay import (
    ANSWER_TOKENS,
    TAUGHT_TOKENS,
    Answered,
    Replay,
    mixed_steps,
    plan_replay,
    read_replay,
)
from alpaca.training.rows import encode, read_rows
from alpaca.training.served import serving_notes
from alpaca.training.surroundings import check_surroundings
from alpaca.training.trainable import check_trainable
from alpaca.training.validation_file import ValidationFile
from alpaca.words import clock, tagged

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Plan:
    """The base, the data as tokens, the steps, and every automatic choice with its reason."""

    config: FinetuneConfig
    base: Path
    base_name: str
    fingerprint: str
    tokenizer: PreTrainedTokenizerBase
    template: Template
    read: ReadReport
    data_sha256: str
    split: Split
    train: EncodedSet
    validation: EncodedSet
    steps: list[Step]
    validation_packs: list[Pack]
    spec: LoraSpec
    device: torch.device
    precision: Choice
    attention: tuple[str, str]
    budget: tuple[int, str]
    learning_rate: tuple[float, str]
    replay_ratio: tuple[float, str]
    replay: Replay | None  # None without replay
    validation_file: ValidationFile | None = None

    @property
    def examples(self) -> list[Encoded]:
        """What the steps' indices mean: the training rows, then those for replay."""
        return [*self.train.examples, *(self.replay.encoded if self.replay else [])]

    @property
    def steps_per_epoch(self) -> int:
        rows = len(self.train.examples) + (self.replay.per_epoch if self.replay else 0)
        return -(-rows // self.config.batch_size)

    @property
    def eval_steps(self) -> int:
        """Steps between evaluations, and between checkpoints."""
        return self.config.eval_steps or evaluation_steps(len(self.steps), self.tokens, self.validation_tokens)

    @property
    def tokens(self) -> int:
        """Those of all steps."""
        return sum(step.tokens for step in self.steps)

    @property
    def validation_tokens(self) -> int:
        return sum(len(example) for example in self.validation.examples)

    @property
    def warmup_steps(self) -> int:
        return min(len(self.steps) - 1, round(len(self.steps) * self.config.warmup_ratio))

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree on for training to go on exactly as if it had never stopped."""
        free = {"output_dir", "resume_from_checkpoint", "dry_run", "report_to", "base_model", "data_path"}
        free |= {"val_data_path", "columns", "add_eos_token", "group_by_length", "replay_path", "report_budget"}
        settings = {k: v for k, v in dataclasses.asdict(self.config).items() if k not in free and "wandb" not in k}
        settings |= {"learning_rate": self.learning_rate[0], "micro_batch_tokens": self.budget[0]}
        settings |= {"quantization": self.precision.precision, "processes": processes()}
        settings |= {"replay_ratio": self.replay_ratio[0], "replay_self": self.replays_itself}
        settings |= {"replay_kl": self.taught[1] if self.taught else 0.0}
        identity: dict[str, Any] = {"base": self.fingerprint, "data": self.data_sha256, "split": self.split.rule}
        identity |= {"template": self.template.card(), "replay": self.replay.sha256 if self.replay else None}
        if self.replay is not None and self.replay.answered is not None:
            identity["replay_answers"] = dataclasses.asdict(self.replay.answered)
        return identity | settings

    def written_into(self, folder: Path) -> Plan:
        """The same run, written into another folder."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, output_dir=str(folder)))

    @property
    def taught(self) -> tuple[int, float] | None:
        """(index from which on the base teaches examples, weight of that), None where it teaches none."""
        if self.replay is None or not self.replay.kl[0]:
            return None
        return len(self.train.examples), self.replay.kl[0]

    @property
    def answer_tokens(self) -> int:
        """Those that the base still has to write for its own answers, at most."""
        if self.replay is None or not self.replays_itself or self.replay.answered is not None:
            return 0
        drawn = {self.replay.encoded[index].row for epoch in self.replay.draws for index in epoch}
        return len(drawn) * self.most_answer_tokens

    @property
    def most_answer_tokens(self) -> int:
        """Tokens that one of the base's own answers may have."""
        return TAUGHT_TOKENS if self.taught else ANSWER_TOKENS

    @property
    def replays_itself(self) -> bool:
        return self.replay is not None and self.replay.own[0]


def make_plan(config: FinetuneConfig, say: Say) -> Plan:
    """Read and check everything, choose what was left to choose, and say each of it. Raises AlpacaError."""
    if config.group_by_length:
        say("--group_by_length has no effect: packing leaves no padding to save")
    if not config.add_eos_token:
        say("--add_eos_token False has no effect: a model that never learns EOS never stops")
    check_surroundings(config)
    base = resolve_base(config.base_model or None)
    check_trainable(base, config.lora_target_modules)
    device = pick_device()
    precision = choose_precision(base, config.quantization, device, training=True)
    say(tagged("base", f"{base}: {precision.precision} on the {device.type.upper()} ({precision.reason})"))
    attention = choose_attention(device, precision.precision)
    say(tagged("attention", attention[1]))
    tokenizer = load_tokenizer(base)
    template = load_template(config.prompt_template_name or "auto", tokenizer)
    asked = "" if config.prompt_template_name != "auto" else " (the base has a chat template)"
    say(tagged("template", f"{template.name}{asked if template.name == 'chat' else ''}"))
    if faint := untrained.untrained_markers(base, tokenizer, template):
        say(tagged("warning", untrained.warning(faint, template)))

    rows = read_rows(config, base, tokenizer, template, say)
    tuned = bool(getattr(tokenizer, "chat_template", None))
    ratio = choose_ratio(config, tuned)
    replay = None
    if ratio[0]:
        source, general = read_replay(config, {example.key() for example in rows.split.validation})
        encoded = encode(tokenizer, template, general, rows.cutoff, config.train_on_inputs).examples
        replay = plan_replay(
            source, general, encoded, ratio=ratio[0], train_rows=len(rows.train.examples), config=config
        )
        replay = dataclasses.replace(replay, kl=choose_kl(config, tuned), own=choose_self(config, tuned, base, general))
    budget = preflight.token_budget(config.micro_batch_tokens, rows.cutoff, device)
    plan = Plan(
        config, base, _base_name(config, base), fingerprint(base), tokenizer, template, rows.read, rows.sha256,
        rows.split, rows.train, rows.validation, _steps(config, rows.train, replay, budget[0]),
        validation_packs(rows.validation.examples, budget[0]), _spec(config, base), device, precision, attention,
        budget, _learning_rate(config, base), ratio, replay, rows.validation_file,
    )  # fmt: skip
    _say_plan(plan, say)
    return plan


def with_own_answers(plan: Plan, rows: list[Example], answered: Answered) -> Plan:
    """The plan with the base's own answers as its rows for replay."""
    assert plan.replay is not None
    config, cutoff = plan.config, plan.train.report.cutoff_len
    encoded = encode(plan.tokenizer, plan.template, rows, cutoff, config.train_on_inputs).examples
    replay = plan_replay(
        plan.replay.source, rows, encoded, ratio=plan.replay.ratio, train_rows=len(plan.train.examples), config=config
    )
    replay = dataclasses.replace(
        replay, sha256=plan.replay.sha256, answered=answered, kl=plan.replay.kl, own=plan.replay.own
    )
    return dataclasses.replace(plan, replay=replay, steps=_steps(config, plan.train, replay, plan.budget[0]))


def _steps(config: FinetuneConfig, train: EncodedSet, replay: Replay | None, budget: int) -> list[Step]:
    how: Any = {
        "batch_size": config.batch_size, "budget": budget, "num_epochs": config.num_epochs, "seed": config.seed,
        "most": config.micro_batch_size, "processes": processes(),
    }  # fmt: skip
    if replay is not None:
        return mixed_steps(train.examples, replay, **how)
    lengths = [len(example) for example in train.examples]
    return plan_steps(lengths, [label_count(example) for example in train.examples], **how)


def _say_plan(plan: Plan, say: Say) -> None:
    say_replay_and_steps(plan, say)
    packs = sum(len(rank) for step in plan.steps for rank in step.packs)
    fill = plan.tokens / max(1, packs * plan.budget[0])
    budget, reason = plan.budget
    say(tagged("packing", f"micro-batches of up to {budget} tokens ({reason}), {fill:.0%} full, no padding"))
    say(tagged("rate", f"{plan.learning_rate[0]:g} ({plan.learning_rate[1]}), cosine to 0"))
    count = preflight.trainable_parameters(plan.base, plan.spec)
    names = ", ".join(plan.spec.target_modules)
    say(tagged("adapter", f"{count:,} parameters to train: rank {plan.spec.r} on {names}"))
    room = disk.check_room(Path(plan.config.output_dir), count, resumes=bool(plan.config.resume_from_checkpoint))
    say(tagged("disk", room))
    for note in serving_notes(plan.base, plan.spec):
        say(tagged("warning", note))
    expected, free = estimate(plan), free_memory(plan.device)
    say(tagged("estimate", expected.line()))
    say(tagged("estimate", forecast_of(plan, expected).line()))
    if expected.memory > free + memory_now(plan.device):
        say(tagged("warning", f"only {free / 1e9:.1f} GB are free. {LESS}"))
    if plan.config.report_budget:
        most = report_seconds(plan.config.report_budget, expected.seconds)
        say(tagged("report", f"up to {clock(most)} after the training; --report_budget 0 leaves it out"))


def say_replay_and_steps(plan: Plan, say: Say) -> None:
    """What the base's own answers may change: the rows for replay, and the steps."""
    for line in _replay_lines(plan):
        say(tagged("replay", line))
    over = f" over {processes()} processes" if processes() > 1 else ""
    steps = f"{len(plan.steps)} of {plan.config.batch_size} examples{over}: {plan.config.num_epochs:g} epochs of "
    rest = f"{plan.steps_per_epoch}; warm-up {plan.warmup_steps}; evaluation and checkpoint every {plan.eval_steps}"
    say(tagged("steps", steps + rest))


def _replay_lines(plan: Plan) -> list[str]:
    ratio, reason = plan.replay_ratio
    if plan.replay is None:
        return [f"none: replay_ratio {ratio:g} ({reason})"]
    lines = [plan.replay.line(len(plan.train.examples)), f"replay_ratio {ratio:g} ({reason}); 0 turns it off"]
    (weight, why), (own, whose) = plan.replay.kl, plan.replay.own
    what = "the divergence from the base counts on these rows" if weight else "these rows are trained on like the data"
    lines.append(f"replay_kl {weight:g} ({why}): {what}")
    lines.append(f"replay_self {str(own).lower()} ({whose})")
    if own and plan.replay.answered is None:
        lines.append("before training the base answers these rows itself; below, the set's own answers stand for them")
    return lines


def estimate(plan: Plan) -> preflight.Estimate:
    """The expected memory and time of the run."""
    return preflight.estimate(
        plan.base, plan.spec, plan.steps, largest=_tokens(plan, _largest(plan)), precision=plan.precision.precision,
        device=plan.device, checkpointing=plan.config.gradient_checkpointing, teaching=teaching_of(plan),
    )  # fmt: skip


def forecast_of(plan: Plan, expected: preflight.Estimate) -> Forecast:
    """The expected time of the run with all that belongs to it."""
    evaluations = -(-len(plan.steps) // plan.eval_steps)
    taught, first = teaching_of(plan).tokens, plan.taught[0] if plan.taught else None
    return Forecast(
        tokens=plan.tokens, trial_tokens=_tokens(plan, _largest(plan)), validation_tokens=plan.validation_tokens,
        evaluations=evaluations, checkpoints=evaluations,
        checkpoint_bytes=preflight.trainable_parameters(plan.base, plan.spec) * disk.BYTES_PER_PARAMETER,
        report=report_seconds(plan.config.report_budget, expected.seconds),
        token_seconds=expected.seconds / max(1, plan.tokens + FORWARD * taught), answer_tokens=plan.answer_tokens,
        taught_tokens=taught, trial_taught=teaching.taught_tokens(_largest(plan), plan.examples, first),
    )  # fmt: skip


def teaching_of(plan: Plan) -> teaching.Teaching:
    """What the base reads once more as a teacher."""
    return teaching.teaching_of(plan.steps, plan.examples, plan.taught[0] if plan.taught else None)


def _largest(plan: Plan) -> Pack:
    """The largest micro-batch."""
    packs = (preflight.largest_pack(plan.steps, plan.examples, process) for process in range(processes()))
    return max(packs, key=lambda pack: _tokens(plan, pack))


def _tokens(plan: Plan, pack: Pack) -> int:
    return sum(len(plan.examples[index]) for index in pack)


def validation_packs(examples: Sequence[Encoded], budget: int) -> list[Pack]:
    """Packs of validation rows, equally many for every process."""
    packs = fill_packs(range(len(examples)), [len(example) for example in examples], budget)
    return packs + [()] * (-len(packs) % processes())


def _spec(config: FinetuneConfig, base: Path) -> LoraSpec:
    targets = preflight.resolve_targets(base, config.lora_target_modules)
    alpha = config.lora_alpha
    return LoraSpec(config.lora_r, alpha, targets, use_rslora=config.use_rslora, use_dora=config.use_dora)


def _learning_rate(config: FinetuneConfig, base: Path) -> tuple[float, str]:
    if config.learning_rate is not None:
        return config.learning_rate, "as asked"
    width = read_config(base).get("hidden_size")
    if not isinstance(width, int):
        raise BadSetting(f"{base.name} does not say its hidden_size: give --learning_rate")
    return preflight.default_learning_rate(width), f"for a base {width} wide"


def _base_name(config: FinetuneConfig, base: Path) -> str:
    """A hub id as it was asked for, else the folder's name: a path of one machine means nothing on another."""
    asked = config.base_model or os.environ.get("BASE_MODEL", "")
    is_hub_id = bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", asked)) and not Path(asked).exists()
    return asked if is_hub_id else base.resolve().name
