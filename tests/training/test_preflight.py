"""What is said before anything is trained is true, and a dry run writes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from alpaca.adapter.lora_config import LoraSpec
from alpaca.errors import BadSetting, NoRowsLeft
from alpaca.packed.packing import plan_steps
from alpaca.training import preflight
from alpaca.training.fit import build_model
from alpaca.training.plan import make_plan
from tests.training.runs import make_rows, settings, train, write_rows

CPU = torch.device("cpu")
LINEAR = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")


# --- targets and parameters ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("base_name", ["tiny_base", "tiny_mha_base"])
def test_all_linear_is_every_layer_but_embeddings_and_head(base_name: str, request: pytest.FixtureRequest) -> None:
    assert preflight.resolve_targets(request.getfixturevalue(base_name), ["all-linear"]) == LINEAR


def test_targets_by_name_and_by_path(tiny_base: Path) -> None:
    assert preflight.resolve_targets(tiny_base, ["v_proj", "q_proj", "v_proj"]) == ("q_proj", "v_proj")
    assert preflight.resolve_targets(tiny_base, ["layers.1.mlp.up_proj"]) == ("layers.1.mlp.up_proj",)
    for name in ("query_key_value", "lm_head", "embed_tokens", "proj", "input_layernorm"):
        with pytest.raises(BadSetting, match=f"has no layer '{name}'. It has {', '.join(LINEAR)}"):
            preflight.resolve_targets(tiny_base, ["q_proj", name])


@pytest.mark.parametrize("base_name", ["tiny_base", "tiny_mha_base"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora_target_modules": ["q_proj", "v_proj"], "lora_r": 8},
        {"lora_target_modules": ["layers.1.mlp.up_proj"]},
        {"use_dora": True},
        {"use_rslora": True},
    ],
    ids=str,
)
def test_the_parameters_said_are_those_that_train(
    base_name: str, changes: dict[str, Any], request: pytest.FixtureRequest, rows: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    plan = make_plan(settings(request.getfixturevalue(base_name), rows, tmp_path / "out", **changes), lines.append)
    model = build_model(plan)
    trainable, _ = model.peft.get_nb_trainable_parameters()
    assert plan.tuning.count() == trainable
    assert any(line.startswith(f"adapter     {trainable:,} parameters to train: rank ") for line in lines)


# --- choices ------------------------------------------------------------------------------------------------------
def test_the_token_budget_and_its_reason() -> None:
    assert preflight.token_budget(2000, 512, CPU) == (2000, "as asked")
    budget, reason = preflight.token_budget(100, 512, CPU)
    assert budget == 512 and "100 would not hold an example of cutoff_len 512" in reason
    assert preflight.token_budget(None, 64, CPU) == (preflight.CPU_BUDGET, "the default for a CPU")
    assert preflight.token_budget(None, 64, torch.device("cuda")) == (preflight.GPU_BUDGET, "the default for a GPU")
    assert preflight.token_budget(None, 100_000, CPU) == (100_000, "one example of cutoff_len must fit")


def test_the_learning_rate_falls_with_width() -> None:
    rates = {width: preflight.default_learning_rate(width) for width in (64, 576, 2048, 4096, 8192)}
    assert rates[4096] == 2.8e-4
    assert rates[576] == 1.3e-3
    assert rates[64] == 2e-3
    assert list(rates.values()) == sorted(rates.values(), reverse=True)


@pytest.mark.parametrize("ratio", [0, 0.05, 0.5, 1])
def test_warm_up_is_a_share_of_the_steps_and_shorter_than_they_are(
    tiny_base: Path, rows: Path, tmp_path: Path, ratio: float
) -> None:
    plan = make_plan(settings(tiny_base, rows, tmp_path / "out", warmup_ratio=ratio), lambda line: None)
    assert len(plan.steps) == 10
    assert plan.warmup_steps == min(9, round(10 * ratio))


def test_a_cutoff_beyond_the_base_s_positions_is_lowered_aloud(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    plan = make_plan(settings(tiny_base, rows, tmp_path / "out", cutoff_len=5000), lines.append)
    assert plan.train.report.cutoff_len == 1024
    assert "lengths     cutoff_len 5000 is beyond the base's 1024 positions, so 1024" in lines


# --- the estimate -------------------------------------------------------------------------------------------------
def estimate(base: Path, *, checkpointing: bool = False, **changes: Any) -> preflight.Estimate:
    given: dict[str, Any] = {"largest": 1024, "precision": "fp32", "device": CPU}
    given |= changes
    steps = plan_steps([100] * 64, [50] * 64, batch_size=16, budget=1024, num_epochs=1, seed=0)
    cost = preflight.lora_cost(base, LoraSpec(8, 16, ("q_proj",)), given["precision"], checkpointing)
    return preflight.estimate(base, cost, steps, **given)


def test_memory_grows_with_the_largest_micro_batch_and_shrinks_with_the_precision_and_checkpointing(
    tiny_base: Path,
) -> None:
    memory = {
        name: estimate(tiny_base, **changes).memory
        for name, changes in {
            "plain": {}, "wide": {"largest": 8192}, "bf16": {"precision": "bf16"}, "again": {"checkpointing": True},
        }.items()
    }  # fmt: skip
    assert memory["bf16"] < memory["plain"] < memory["wide"]
    assert memory["again"] < memory["plain"]
    assert "TFLOP" in estimate(tiny_base).line() and "GB at the peak" in estimate(tiny_base).line()


# --- the dry run --------------------------------------------------------------------------------------------------
def test_a_dry_run_tells_everything_and_writes_nothing(tiny_mha_base: Path, tmp_path: Path) -> None:
    made = [
        *make_rows(20),
        {"instruction": "long answer", "output": "hay " * 300},
        {"instruction": "long question " * 300, "output": "no"},
        {"instruction": "empty", "output": ""},
        {"instruction": "broken"},
        make_rows(1)[0],
    ]
    data = write_rows(tmp_path / "rows.jsonl", made)
    before = sorted(tmp_path.rglob("*"))
    config = settings(
        tiny_mha_base, data, tmp_path / "out", cutoff_len=200, val_set_size=0, skip_bad_rows=True, dry_run=True
    )
    text = "\n".join(train(config))
    for said in (
        "25 rows read", "23 kept", "1 dropped: empty output", "row 24", "1 exact duplicates (kept)",
        "22 examples kept, 1 of them truncated to cutoff_len 200", "1 dropped as too long: row 22",
        "50 %:", "99 %:", "fit in 200", "12 of 4 examples: 2 epochs of 6", "8,704 parameters to train",
        "GB at the peak", "example 1 (row 1, ", "example 2 (row 2, ", "example 3 (row 3, ",
        "what stands in ⟦…⟧ is trained, the rest is masked", "### Response:", "<|im_end|>⟧",
        "dry run: nothing was trained", "fp32 on the CPU (as asked)", "template    alpaca", "0.005 (as asked)",
    ):  # fmt: skip
        assert said in text, said
    assert text.count("⟦") == 2 * 3  # in the line that explains it, and in the example
    assert sorted(tmp_path.rglob("*")) == before


def test_rows_that_all_exceed_the_cutoff_are_refused_with_what_to_do(
    tiny_base: Path, rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(NoRowsLeft, match="none of the 20 training rows fits in cutoff_len 8: raise --cutoff_len"):
        train(settings(tiny_base, rows, tmp_path / "out", cutoff_len=8))
    assert not (tmp_path / "out").exists()


def test_the_time_is_estimated_from_a_rate_that_is_measured() -> None:
    assert preflight.matmul_rate(CPU, "fp32") > 1e8
