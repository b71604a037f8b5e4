"""TRL's padding-free supervised fine-tuning on steps that were planned here, in its own environment.

python -m benchmarks.rivals.trl_worker PLAN.json: see `Planned`. The last line printed is what was measured, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, TypedDict

from alpaca.device import peak_memory
from benchmarks.train import Row, held_out_loss

ROWS = 4  # in a micro-batch: see docs/benchmarks.md


class Planned(TypedDict):
    """What both trainers do; the rows stand in the order in which they are trained."""

    base: str
    rows: list[Row]
    held_out: list[Row]
    step: int
    """Rows in a step."""
    rank: int
    alpha: int
    targets: list[str]
    learning_rate: float
    warmup: int
    seed: int
    work: str
    """A folder that nothing is kept in."""


def train(plan: Planned) -> dict[str, float]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    torch.manual_seed(plan["seed"])
    model: Any = AutoModelForCausalLM.from_pretrained(plan["base"], dtype=torch.bfloat16)
    lora = LoraConfig(
        r=plan["rank"], lora_alpha=plan["alpha"], target_modules=plan["targets"], task_type="CAUSAL_LM"
    )  # fmt: skip
    settings = SFTConfig(
        output_dir=plan["work"], per_device_train_batch_size=ROWS, gradient_accumulation_steps=plan["step"] // ROWS,
        num_train_epochs=1, learning_rate=plan["learning_rate"], lr_scheduler_type="cosine",
        warmup_steps=plan["warmup"], weight_decay=0.0, max_grad_norm=1.0, save_strategy="no", report_to="none",
        use_cpu=True, bf16=False, seed=plan["seed"], disable_tqdm=True, train_sampling_strategy="sequential",
        padding_free=True, max_length=None, gradient_checkpointing=False,
    )  # fmt: skip
    rows = Dataset.from_list([{name: row[name] for name in ("input_ids", "labels")} for row in plan["rows"]])
    tokenizer = AutoTokenizer.from_pretrained(plan["base"])
    trainer = SFTTrainer(model, settings, train_dataset=rows, processing_class=tokenizer, peft_config=lora)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    trainer.model.eval()
    tokens = sum(len(row["input_ids"]) for row in plan["rows"])
    return {"seconds": seconds, "tokens": tokens, "loss": held_out_loss(trainer.model, plan["held_out"])}


def main() -> None:
    import torch

    measured = train(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    print(json.dumps({**measured, "peak": peak_memory(torch.device("cpu"))}))


if __name__ == "__main__":
    main()
