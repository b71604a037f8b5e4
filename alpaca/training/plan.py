"""Everything about a fine-tune that is decided before the base's weights are loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from alpaca.adapter.base_template import named_template
from alpaca.base.find import resolve_base
from alpaca.base.headers import fingerprint, read_config
from alpaca.base.load import load_tokenizer
from alpaca.base.precision import Choice
from alpaca.data.report import ReadReport
from alpaca.data.split import Split
from alpaca.device import free_memory, pick_device
from alpaca.errors import BadSetting
from alpaca.packed.attention import choose_attention
from alpaca.packed.batch import label_count
from alpaca.packed.packing import Pack, Step, fill_packs, plan_steps
from alpaca.progress import Say, is_sharded, processes
from alpaca.prompts.encode import Encoded, EncodedSet
from alpaca.prompts.example import Example
from alpaca.prompts.template import Template
from alpaca.training import disk, preflight, sharded, teaching, untrained
from alpaca.training.ancestor import OnTop, choose_template, find_on_top, held_out_before
from alpaca.training.config import FULL_OUTPUT, FinetuneConfig
from alpaca.training.forecast import FORWARD, Forecast, evaluation_steps, report_seconds
from alpaca.training.full import FullTuning
from alpaca.training.lora import LoraTuning
from alpaca.training.memory import check_memory, memory_now
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
from alpaca.training.surroundings import check_surroundings
from alpaca.training.trainable import check_trainable
from alpaca.training.tuning import Held, Tuning
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
    tuning: Tuning
    device: torch.device
    precision: Choice
    attention: tuple[str, str]
    budget: tuple[int, str]
    learning_rate: tuple[float, str]
    replay_ratio: tuple[float, str]
    replay: Replay | None  # None without replay
    validation_file: ValidationFile | None = None
    on_top: OnTop | None = None  # the adapter that it begins with

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

    @property
    def held(self) -> Held:
        """How the base is held."""
        return Held(self.base, self.base_name, self.precision.precision, self.device, self.attention[0])

    @property
    def cost(self) -> preflight.Cost:
        """What training takes, whatever the rows are."""
        return self.tuning.cost(self.precision.precision, self.config.gradient_checkpointing)

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree on for training to go on exactly as if it had never stopped."""
        free = {"output_dir", "resume_from_checkpoint", "dry_run", "report_to", "base_model", "data_path"}
        free |= {"val_data_path", "columns", "add_eos_token", "group_by_length", "replay_path", "report_budget"}
        free |= {"adapter_path", "new_adapter"}
        settings = {k: v for k, v in dataclasses.asdict(self.config).items() if k not in free and "wandb" not in k}
        settings |= {"learning_rate": self.learning_rate[0], "micro_batch_tokens": self.budget[0]}
        settings |= {"quantization": self.precision.precision, "processes": processes()}
        if is_sharded():  # its checkpoints are read otherwise
            settings["processes"] = f"{processes()}, sharded"
        settings |= {"replay_ratio": self.replay_ratio[0], "replay_self": self.replays_itself}
        settings |= {"replay_kl": self.taught[1] if self.taught else 0.0}
        identity: dict[str, Any] = {"base": self.fingerprint, "data": self.data_sha256, "split": self.split.rule}
        identity |= {"template": self.template.card(), "replay": self.replay.sha256 if self.replay else None}
        identity["ancestor"] = self.on_top.identity() if self.on_top else None
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
    if config.output_dir == FULL_OUTPUT:
        say(tagged("output", f"{FULL_OUTPUT}, a folder of its own: {FinetuneConfig.output_dir} is an adapter's name"))
    check_surroundings(config)
    base = resolve_base(config.base_model or None)
    config, on_top = find_on_top(config, base, say)
    check_trainable(base, config.lora_target_modules)
    device = pick_device()
    tuning = choose_tuning(config, base, on_top)
    chooser = sharded.choose_precision if is_sharded() else tuning.choose_precision
    precision = chooser(config.quantization, device)
    say(tagged("base", f"{base}: {precision.precision} on the {device.type.upper()} ({precision.reason})"))
    attention = choose_attention(device, precision.precision)
    say(tagged("attention", attention[1]))
    tokenizer = load_tokenizer(base)
    template, reason = named_template(config.prompt_template_name, base, tokenizer)
    if on_top is not None:
        template, reason = choose_template(config, on_top, template, say)
    say(tagged("template", f"{template.name} ({reason})" if reason else template.name))
    if faint := untrained.untrained_markers(base, tokenizer, template):
        say(tagged("warning", untrained.warning(faint, template)))

    rows = read_rows(config, base, tokenizer, template, say)
    if on_top is not None and (seen := held_out_before(on_top, rows.sha256, config)):
        say(tagged("warning", seen))
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
        validation_packs(rows.validation.examples, budget[0]), tuning, device, precision, attention,
        budget, _learning_rate(config, base, tuning), ratio, replay, rows.validation_file, on_top,
    )  # fmt: skip
    _say_plan(plan, say)
    return plan


def what_must_be_alike(plan: Plan) -> dict[str, Any]:
    """What every process of a run must have planned the same, or they would wait for one another for ever."""
    steps = hashlib.sha256(repr((plan.steps, plan.validation_packs, plan.eval_steps)).encode()).hexdigest()
    return {**plan.identity(), "steps": steps}


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
    tuning, resumes = plan.tuning, bool(plan.config.resume_from_checkpoint)
    folder, count = Path(plan.config.output_dir), tuning.count()
    say(tagged(tuning.noun, f"{count:,} parameters to train: {tuning.what}"))
    room = disk.check_room(folder, count, noun=tuning.noun, smaller=tuning.smaller, resumes=resumes)
    say(tagged("disk", room))
    for note in tuning.notes():
        say(tagged("warning", note))
    free = free_memory(plan.device) + memory_now(plan.device)
    check_memory(plan.cost.held, free, tuning)
    expected = estimate(plan)
    say(tagged("estimate", expected.line()))
    say(tagged("estimate", forecast_of(plan, expected).line()))
    if expected.memory > free:
        say(tagged("warning", f"only {free / 1e9:.1f} GB are free. {tuning.beside_memory}"))
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
        plan.base, plan.cost, plan.steps, largest=_tokens(plan, _largest(plan)), precision=plan.precision.precision,
        device=plan.device, teaching=teaching_of(plan),
    )  # fmt: skip


def forecast_of(plan: Plan, expected: preflight.Estimate) -> Forecast:
    """The expected time of the run with all that belongs to it."""
    evaluations = -(-len(plan.steps) // plan.eval_steps)
    taught, first = teaching_of(plan).tokens, plan.taught[0] if plan.taught else None
    return Forecast(
        tokens=plan.tokens, trial_tokens=_tokens(plan, _largest(plan)), validation_tokens=plan.validation_tokens,
        evaluations=evaluations, checkpoints=evaluations,
        checkpoint_bytes=plan.tuning.count() * disk.BYTES_PER_PARAMETER,
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


def choose_tuning(config: FinetuneConfig, base: Path, on_top: OnTop | None = None) -> Tuning:
    """What of the base is trained. Raises BadSetting for layers that it does not have."""
    return FullTuning(base, config) if config.finetuning_type == "full" else LoraTuning.of(config, base, on_top)


def _learning_rate(config: FinetuneConfig, base: Path, tuning: Tuning) -> tuple[float, str]:
    if config.learning_rate is not None:
        return config.learning_rate, "as asked"
    width = read_config(base).get("hidden_size")
    if not isinstance(width, int):
        raise BadSetting(f"{base.name} does not say its hidden_size: give --learning_rate")
    return tuning.default_rate(width)


def _base_name(config: FinetuneConfig, base: Path) -> str:
    """A hub id as it was asked for, else the folder's name: a path of one machine means nothing on another."""
    asked = config.base_model or os.environ.get("BASE_MODEL", "")
    is_hub_id = bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", asked)) and not Path(asked).exists()
    return asked if is_hub_id else base.resolve().name
