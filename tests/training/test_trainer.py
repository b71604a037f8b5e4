"""A step is batch_size examples, whatever the packing; it is what a plain loop would do; bad losses stop the run."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from alpaca.errors import NonFiniteLoss
from alpaca.prompts.encode import Encoded
from alpaca.training import trainer
from alpaca.training.config import FinetuneConfig
from alpaca.training.plan import make_plan
from alpaca.training.preflight import resolve_targets
from alpaca.training.trainer import PackedTrainer
from tests.conftest import ROOT
from tests.training.runs import adapter_bytes, leftovers, make_rows, settings, train, write_rows


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(str(folder / "adapter_model.safetensors"))


def assert_close(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], tolerance: float) -> None:
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(got[name], tensor, atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


# --- the step -----------------------------------------------------------------------------------------------------
def padded(examples: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    """A batch as everybody else makes it: padded on the right, labels -100 where nothing is trained."""
    width = max(map(len, examples))
    ids, labels, mask = (torch.full((len(examples), width), fill) for fill in (3, -100, 0))
    for row, example in enumerate(examples):
        ids[row, : len(example)] = torch.tensor(example.input_ids)
        mask[row, : len(example)] = 1
        for start, end in example.trained:
            labels[row, start:end] = torch.tensor(example.input_ids[start:end])
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def plain_loop(config: FinetuneConfig) -> dict[str, torch.Tensor]:
    """The same training in the plainest way: PEFT, padding, AdamW, cosine with warm-up, clipping at 1."""
    plan = make_plan(config, lambda line: None)
    examples, epochs = plan.train.examples, int(config.num_epochs)
    base = AutoModelForCausalLM.from_pretrained(config.base_model, dtype=torch.float32)
    torch.manual_seed(config.seed)
    lora: dict[str, Any] = {"r": config.lora_r, "lora_alpha": config.lora_alpha, "task_type": "CAUSAL_LM"}
    targets = list(resolve_targets(plan.base, config.lora_target_modules))
    model = get_peft_model(base, LoraConfig(**lora, target_modules=targets)).train()
    weights = [p for p in model.parameters() if p.requires_grad]
    assert config.learning_rate is not None
    optimizer = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=0.0)
    total = -(-len(examples) // config.batch_size) * epochs
    warmup, step = round(total * config.warmup_ratio), 0
    for epoch in range(epochs):
        order = np.random.default_rng([config.seed, epoch]).permutation(len(examples))
        for start in range(0, len(order), config.batch_size):
            rate = (
                (step + 1) / (warmup + 1)
                if step < warmup
                else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
            )
            optimizer.param_groups[0]["lr"] = config.learning_rate * rate
            model(**padded([examples[i] for i in order[start : start + config.batch_size]])).loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    return {name: t.detach() for name, t in get_peft_model_state_dict(model, save_embedding_layers=False).items()}


@pytest.mark.parametrize("base_name", ["tiny_base", "tiny_mha_base"])
def test_training_is_what_a_plain_padded_loop_does(
    base_name: str, request: pytest.FixtureRequest, rows: Path, tmp_path: Path
) -> None:
    base = request.getfixturevalue(base_name)
    config = settings(base, rows, tmp_path / "out", val_set_size=0, warmup_ratio=0.25, batch_size=5, learning_rate=1e-3)
    train(config)
    assert_close(tensors(tmp_path / "out"), plain_loop(config), 1e-4)


PACKINGS: list[dict[str, Any]] = [
    {"micro_batch_tokens": 64}, {"micro_batch_size": 1}, {"micro_batch_size": 3, "micro_batch_tokens": 200},
    {"gradient_checkpointing": True, "micro_batch_size": 2},
]  # fmt: skip


@pytest.fixture(scope="module")
def one_pack(tiny_base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packings") / "one"
    train(settings(tiny_base, rows, out, **STEADY, micro_batch_tokens=4096))
    return out


STEADY: dict[str, Any] = {"cutoff_len": 64, "learning_rate": 1e-3, "batch_size": 6}


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_the_packing_does_not_change_the_steps(
    tiny_base: Path, rows: Path, tmp_path: Path, one_pack: Path, packing: dict[str, Any]
) -> None:
    train(settings(tiny_base, rows, tmp_path / "out", **STEADY, **packing))
    assert_close(tensors(tmp_path / "out"), tensors(one_pack), 1e-4)
    history = [
        json.loads((out / "report" / "training.json").read_text())["history"] for out in (tmp_path / "out", one_pack)
    ]
    for ours, theirs in zip(*history, strict=True):
        for name in ("loss", "eval_loss", "grad_norm", "learning_rate"):
            assert ours.get(name) == pytest.approx(theirs.get(name), abs=1e-3)


# --- invariant 8 --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("changes", [{}, {"lora_dropout": 0.2}, {"use_dora": True}], ids=str)
def test_the_same_seed_gives_the_same_adapter_and_another_seed_another(
    tiny_base: Path, rows: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        torch.rand(3)  # what happened before in the process must not matter
        train(settings(tiny_base, rows, tmp_path / name, seed=seed, **changes))
    assert adapter_bytes(tmp_path / "a") == adapter_bytes(tmp_path / "b")
    assert adapter_bytes(tmp_path / "a") != adapter_bytes(tmp_path / "c")


# --- losses that are not finite -----------------------------------------------------------------------------------
def poisoned_base(base: Path, folder: Path, text: str) -> Path:
    """A copy of a base (one with a head of its own) in which the embeddings of those tokens of `text` that no other
    row has are NaN."""
    from alpaca.base.load import load_tokenizer

    folder.mkdir()
    for path in base.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tokenizer = load_tokenizer(folder)
    template = (ROOT / "templates" / "alpaca.json").read_text(encoding="utf-8")
    texts = [template, *(text for row in make_rows(24) for text in row.values())]
    everyday = {token for text in texts for token in tokenizer(text)["input_ids"]}
    rare = set(tokenizer(text)["input_ids"]) - everyday
    assert rare
    weights = load_file(str(folder / "model.safetensors"))
    weights["model.embed_tokens.weight"][sorted(rare)] = float("nan")
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_rows(tiny_mha_base: Path, tmp_path: Path) -> None:
    made = make_rows(12)
    made[7]["output"] = "☢"
    data = write_rows(tmp_path / "rows.jsonl", made)
    base = poisoned_base(tiny_mha_base, tmp_path / "base", "☢")
    config = settings(
        base, data, tmp_path / "out", val_set_size=0, eval_steps=1, batch_size=2, micro_batch_size=1, seed=5
    )
    steps = make_plan(config, lambda line: None).steps
    bad = next(number for number, step in enumerate(steps, 1) if 7 in step.examples)
    assert bad > 2  # some checkpoints come before it
    with pytest.raises(NonFiniteLoss, match=f"at step {bad}, in the micro-batch of rows 8\\.") as stopped:
        train(config)
    assert str(stopped.value).startswith("E5003 NonFiniteLoss: the loss became nan")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"checkpoint-{bad - 1}", f"checkpoint-{bad - 2}"}
    assert leftovers(tmp_path / "out") == []
    for name in names:
        assert all(torch.isfinite(t).all() for t in tensors(tmp_path / "out" / name).values())


def test_a_validation_loss_that_is_not_finite_stops_before_anything_is_trained(
    tiny_mha_base: Path, tmp_path: Path
) -> None:
    made = make_rows(12)
    data = write_rows(tmp_path / "rows.jsonl", made)
    held = make_plan(settings(tiny_mha_base, data, tmp_path / "x"), lambda line: None).split.validation[0].row
    made[held - 1]["output"] = "☢"
    write_rows(data, made)
    base = poisoned_base(tiny_mha_base, tmp_path / "base", "☢")
    with pytest.raises(NonFiniteLoss, match=rf"validation.*\b{held}\b"):
        train(settings(base, data, tmp_path / "out"))
    assert not list((tmp_path / "out").rglob("*"))


# --- the loop -----------------------------------------------------------------------------------------------------
def test_the_first_lines_of_the_file_list_what_is_extended_in_the_order_of_the_calls(
    tiny_base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listened to from outside, in a run that is resumed."""
    inherited = {name for parent in PackedTrainer.__mro__[1:] for name in vars(parent)}
    extended = [name for name, item in vars(PackedTrainer).items() if callable(item) and name in inherited]
    listed = re.findall(r"^ {4,}(\w+)  ", trainer.__doc__ or "", re.MULTILINE)
    assert sorted(listed) == sorted(name for name in extended if not name.startswith("__"))
    changes: dict[str, Any] = {"num_epochs": 4}
    train(settings(tiny_base, rows, tmp_path / "out", **changes))
    shutil.rmtree(tmp_path / "out" / "checkpoint-20")
    called: dict[str, None] = {}

    def listen(name: str) -> Any:
        method = getattr(PackedTrainer, name)
        return lambda self, *given, **named: called.setdefault(name) or method(self, *given, **named)

    for name in listed:
        monkeypatch.setattr(PackedTrainer, name, listen(name))
    train(settings(tiny_base, rows, tmp_path / "out", **changes, resume_from_checkpoint="auto"))
    assert list(called) == listed
