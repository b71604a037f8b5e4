"""Our trainer against what it replaces, on the same rows, base, LoRA settings and steps, in one run.

    python benchmarks/train.py                     the table of docs/benchmarks.md
    python benchmarks/train.py --budgets 512,1024  our trainer under several token budgets
    python benchmarks/train.py --rivals            our trainer and TRL's padding-free one (make rivals installs it)
    python benchmarks/train.py --full              all weights: our trainer and transformers' own

Each contender runs in a process of its own, one after another, so that its peak memory is its own. Ratios are what
counts: a machine's speed changes from hour to hour, and all contenders of a run see the same hour.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from alpaca.training.plan import Plan

WHOLE = "all weights"
PADDED = 256  # what the seed's recipe pads and cuts every row to


@dataclass(frozen=True)
class Contender:
    """One way to train: `recipe` is seed, dynamic, packed or trl. `targets`: the layers that LoRA adapts, or WHOLE."""

    name: str
    recipe: str
    precision: str
    targets: str = "q_proj,v_proj"
    budget: int | None = None

    @property
    def whole(self) -> bool:
        """Whether all weights are trained."""
        return self.targets == WHOLE


CONTENDERS = [
    Contender("seed recipe: padded to 256, fp32, all tokens trained", "seed", "fp32"),
    Contender("Trainer, dynamic padding, bf16", "dynamic", "bf16"),
    Contender("packed, bf16", "packed", "bf16"),
    Contender("packed, bf16, LoRA on all linear layers", "packed", "bf16", "all-linear"),
]

RIVALS = [
    Contender("TRL, padding-free, bf16", "trl", "bf16"),
    Contender("packed, bf16", "packed", "bf16"),
    Contender("TRL, padding-free, bf16, LoRA on all linear layers", "trl", "bf16", "all-linear"),
    Contender("packed, bf16, LoRA on all linear layers", "packed", "bf16", "all-linear"),
]


ALL_WEIGHTS = [
    Contender("Trainer, dynamic padding, bf16, all weights", "dynamic", "bf16", WHOLE),
    Contender("packed, bf16, all weights", "packed", "bf16", WHOLE),
    Contender("packed, bf16, LoRA on all linear layers", "packed", "bf16", "all-linear"),
]


class Row(TypedDict):
    """A row as transformers' models take it: labels are -100 where nothing is trained."""

    input_ids: list[int]
    attention_mask: list[int]
    labels: list[int]


def make_bench_plan(contender: Contender, options: argparse.Namespace, work: str) -> Plan:
    """The same rows in the same steps for every contender; `work` is a folder that nothing is kept in."""
    from alpaca.training.config import FinetuneConfig
    from alpaca.training.plan import make_plan

    settings: dict[str, Any] = {
        "base_model": options.base_model, "data_path": options.data_path, "output_dir": work, "batch_size": 16,
        "cutoff_len": 512, "val_set_size": 32, "prompt_template_name": "alpaca", "quantization": contender.precision,
        "micro_batch_tokens": contender.budget, "eval_steps": 10**6, "skip_bad_rows": True, "replay_ratio": 0,
    }  # fmt: skip
    if contender.whole:
        settings |= {"finetuning_type": "full", "learning_rate": 3e-5}
    else:
        lora = {"lora_r": 8, "lora_alpha": 16, "lora_target_modules": contender.targets.split(",")}
        settings |= lora | {"learning_rate": 3e-4}
    one_epoch = make_plan(FinetuneConfig(**settings), lambda _: None)
    epochs = options.steps / one_epoch.steps_per_epoch
    return make_plan(FinetuneConfig(**settings, num_epochs=epochs), lambda _: None)


def run_packed(plan: Plan) -> dict[str, float]:
    """This project's trainer."""
    from alpaca.training.fit import build_model, make_trainer

    trainer = make_trainer(plan, build_model(plan))
    trainer.args.eval_strategy = trainer.args.save_strategy = "no"
    trainer.args.load_best_model_at_end = False
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "tokens": sum(s.tokens for s in plan.steps), "loss": trainer.validation_loss()}


def plain_model(plan: Plan) -> Any:
    """The base with PEFT's LoRA; or in fp32, all of it open to gradients, which `bf16=True` of transformers' Trainer
    computes with in bf16."""
    import torch
    from peft import LoraConfig, get_peft_model

    from alpaca.base.load import load_model
    from alpaca.training.preflight import resolve_targets

    if plan.config.finetuning_type == "full":
        return load_model(plan.base, "fp32", plan.device).requires_grad_(True)
    model = load_model(plan.base, plan.precision.precision, plan.device)
    lora = LoraConfig(
        r=plan.config.lora_r, lora_alpha=int(plan.config.lora_alpha), task_type="CAUSAL_LM",
        target_modules=list(resolve_targets(plan.base, plan.config.lora_target_modules)),
    )  # fmt: skip
    torch.manual_seed(plan.config.seed)
    return get_peft_model(model, lora)


def run_padded(plan: Plan, *, pad_to: int | None, all_tokens: bool) -> dict[str, float]:
    """transformers' Trainer as it comes: micro-batches of 4 rows, padded to `pad_to` or to the longest of the four."""
    import torch
    from transformers import Trainer, TrainingArguments

    config, examples = plan.config, plan.examples
    model = plain_model(plan)
    rows = [as_row(examples[i], pad_to, all_tokens) for step in plan.steps for i in step.examples]

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        width = pad_to or max(len(row["input_ids"]) for row in batch)
        fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
        return {
            name: torch.tensor([row[name] + [value] * (width - len(row[name])) for row in batch])
            for name, value in fill.items()
        }

    class InOrder(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
            return torch.utils.data.SequentialSampler(rows)

    arguments = TrainingArguments(
        output_dir=config.output_dir, per_device_train_batch_size=4, gradient_accumulation_steps=4, num_train_epochs=1,
        learning_rate=plan.learning_rate[0], lr_scheduler_type="cosine", warmup_steps=plan.warmup_steps,
        weight_decay=0.0, max_grad_norm=1.0, save_strategy="no", report_to="none", use_cpu=plan.device.type == "cpu",
        remove_unused_columns=False, disable_tqdm=True, seed=config.seed,
        bf16=config.finetuning_type == "full" and plan.precision.precision == "bf16",
    )  # fmt: skip
    trainer = InOrder(model, arguments, train_dataset=rows, data_collator=collate)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    model.eval()
    return {
        "seconds": seconds,
        "tokens": sum(sum(row["attention_mask"]) for row in rows),
        "loss": held_out_loss(model, [as_row(example) for example in plan.validation.examples], plan.device),
    }


def as_row(example: Any, pad_to: int | None = None, all_tokens: bool = False) -> Row:
    ids = example.input_ids[:pad_to]
    labels = list(ids) if all_tokens else [-100] * len(ids)
    for start, end in example.trained:
        labels[start:end] = ids[start:end]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def held_out_loss(model: Any, rows: Sequence[Row], device: Any = "cpu") -> float:
    """Mean loss per response token over the held-out rows, each by itself: the measure of every contender."""
    import torch

    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
            loss = model(input_ids=ids.to(device), labels=labels.to(device)).loss
            trained = sum(label != -100 for label in row["labels"][1:])
            total, count = total + loss.item() * trained, count + trained
    return total / count


def run_one(contender: Contender, options: argparse.Namespace) -> dict[str, float]:
    """Run a contender in this process and measure it."""
    from alpaca.device import peak_memory

    with tempfile.TemporaryDirectory() as work:
        plan = make_bench_plan(contender, options, work)
        if contender.recipe == "packed":
            result = run_packed(plan)
        elif contender.recipe == "trl":
            from benchmarks.rivals.training import run_trl

            result = run_trl(plan)
        else:
            seed = contender.recipe == "seed"
            result = run_padded(plan, pad_to=PADDED if seed else None, all_tokens=seed)
    result["examples"] = sum(len(step.examples) for step in plan.steps)
    result.setdefault("peak", peak_memory(plan.device))
    return result


def in_own_process(number: int, options: argparse.Namespace) -> dict[str, float]:
    """Run contender `number` in a fresh Python and return what it measured."""
    command = [sys.executable, __file__, *sys.argv[1:], "--contender", str(number)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{contenders(options)[number].name} failed:\n{done.stderr[-3000:]}")
    measured: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def contenders(options: argparse.Namespace) -> list[Contender]:
    """The four of the table, ours and TRL's, those of all weights, or ours under several budgets."""
    if options.rivals:
        return RIVALS
    if options.full:
        return ALL_WEIGHTS
    if not options.budgets:
        return CONTENDERS
    budgets = [int(budget) for budget in options.budgets.split(",")]
    return [Contender(f"packed, bf16, {b} tokens a micro-batch", "packed", "bf16", budget=b) for b in budgets]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_model", default="weights/smollm2-135m-instruct")
    parser.add_argument("--data_path", default=str(ROOT / "data" / "alpacas.jsonl"))
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps of 16 examples")
    parser.add_argument("--budgets", default="", help="compare token budgets of our trainer instead")
    parser.add_argument("--rivals", action="store_true", help="compare our trainer with TRL's instead")
    parser.add_argument("--full", action="store_true", help="compare ways to train all weights instead")
    parser.add_argument("--contender", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender is not None:
        print(json.dumps(run_one(contenders(options)[options.contender], options)))
        return
    head = f"{'':<52}{'examples/s':>11}{'tokens/s':>10}{'ratio':>7}{'peak GB':>9}{'held-out loss':>15}"
    print(f"{options.steps} steps of 16 rows of {Path(options.data_path).name} on {Path(options.base_model).name}")
    print(head, flush=True)
    first = 0.0
    for number, contender in enumerate(contenders(options)):
        result = in_own_process(number, options)
        rate = result["tokens"] / result["seconds"]
        first = first or rate
        print(
            f"{contender.name:<52}{result['examples'] / result['seconds']:>11.2f}{rate:>10.0f}{rate / first:>7.2f}"
            f"{result['peak'] / 1e9:>9.2f}{result['loss']:>15.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
