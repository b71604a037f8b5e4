"""What the teacher pass costs is in the estimate: the FLOP that torch counts of it, and the rows that it reads."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from alpaca.base.headers import count_layer_weights, read_config
from alpaca.packed.batch import label_count
from alpaca.packed.taught import TaughtModel
from alpaca.training.fit import build_model
from alpaca.training.forecast import FORWARD
from alpaca.training.plan import Plan, estimate, forecast_of, make_plan, teaching_of
from alpaca.training.teaching import Teaching
from tests.packed.test_taught import inputs
from tests.training.runs import make_rows, settings, write_rows


@pytest.fixture(scope="module")
def general(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows for replay."""
    return write_rows(tmp_path_factory.mktemp("general") / "general.jsonl", make_rows(40))


def plan_of(base: Path, rows: Path, general: Path, output: Path, **changes: Any) -> Plan:
    given: dict[str, Any] = {"replay_ratio": 0.4, "replay_path": str(general), "replay_kl": 1.0}
    return make_plan(settings(base, rows, output, **(given | changes)), lambda line: None)


def test_every_row_that_the_base_teaches_counts_as_often_as_it_is_read(
    tiny_base: Path, rows: Path, general: Path, tmp_path: Path
) -> None:
    plan = plan_of(tiny_base, rows, general, tmp_path / "out", micro_batch_tokens=128, cutoff_len=128)
    assert plan.replay is not None
    drawn = [plan.replay.encoded[index] for epoch in plan.replay.draws for index in epoch]
    found = teaching_of(plan)
    assert found.tokens == sum(map(len, drawn)) > 0
    assert found.labels == sum(map(label_count, drawn))
    assert max(map(label_count, drawn)) <= found.most_labels < found.labels  # those of one micro-batch


def test_the_estimate_grows_by_the_teacher_s_share_and_not_without_it(
    tiny_base: Path, rows: Path, general: Path, tmp_path: Path
) -> None:
    taught = plan_of(tiny_base, rows, general, tmp_path / "out")
    alone = plan_of(tiny_base, rows, general, tmp_path / "out", replay_kl=0.0)
    assert teaching_of(alone) == teaching_of(plan_of(tiny_base, rows, general, tmp_path / "out", replay_ratio=0))
    assert teaching_of(alone).flop(10, 10) == teaching_of(alone).memory(1000, 64, 4) == 0
    assert estimate(taught).memory > estimate(alone).memory
    work = forecast_of(taught, dataclasses.replace(estimate(taught), seconds=90.0))
    assert work.parts()["steps"] == pytest.approx(90)  # the teacher's part is among them
    quick = work.after_trial((work.trial_tokens + FORWARD * work.trial_taught) * 0.01, None)
    assert quick.parts()["steps"] == pytest.approx((taught.tokens + FORWARD * work.taught_tokens) * 0.01)
    assert work.taught_tokens and work.trial_taught


def test_torch_counts_the_flop_of_the_teacher_that_the_estimate_adds(
    tiny_base: Path, rows: Path, tmp_path: Path
) -> None:
    """But for attention and the adapter's own products, which the estimate leaves out everywhere."""
    peft = build_model(make_plan(settings(tiny_base, rows, tmp_path / "out"), lambda line: None)).peft
    model, given = TaughtModel(peft), inputs((3, 4, 5, 6))
    counted = []
    for taught in (given, {name: value for name, value in given.items() if name != "taught"}):
        with FlopCounterMode(display=False) as counter:
            model(**taught).backward()
        counted.append(counter.get_total_flops())
    config = read_config(tiny_base)
    part, head = given["taught"], config["vocab_size"] * config["hidden_size"]
    tokens, labels = part["input_ids"].numel(), len(part["labels"])
    added = Teaching(tokens, labels, labels).flop(count_layer_weights(tiny_base), head)
    assert added <= counted[0] - counted[1] <= 1.3 * added
