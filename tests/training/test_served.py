"""What is trained can be served, or the plan says before training that it can't."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from alpaca.errors import BadBase, BadSetting
from alpaca.serving.loading import load_base, open_engine
from tests.training.runs import settings, train


@pytest.fixture
def dynamic(tiny_base: Path, tmp_path: Path) -> Path:
    """A base whose rotary positions depend on the length of the sequence."""
    folder = Path(shutil.copytree(tiny_base, tmp_path / "dynamic"))
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def warnings(base: Path, rows: Path, folder: Path, **changes: Any) -> list[str]:
    lines = train(settings(base, rows, folder / "out", dry_run=True, **changes))
    return [line for line in lines if line.startswith("warning")]


def test_a_base_that_the_engine_refuses_is_named_in_the_plan_with_its_own_reason(
    dynamic: Path, rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadBase) as refused:
        open_engine(load_base(str(dynamic), "fp32", say=lambda line: None), say=lambda line: None)
    (said,) = warnings(dynamic, rows, tmp_path)
    assert refused.value.message in said and "'dynamic'" in said and "with transformers and PEFT" in said


def test_a_base_that_can_t_be_asked_is_not_asked_for_its_own_answers(dynamic: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"replay_self needs the base's own answers, but .*'dynamic'"):
        train(settings(dynamic, rows, tmp_path / "out", replay_self=True, replay_ratio=0.1))
    by_default = settings(dynamic, rows, tmp_path / "out", replay_self=None, replay_ratio=0.1, dry_run=True)
    assert any("replay_self false (" in line and "'dynamic'" in line for line in train(by_default))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"use_dora": True}, ["vLLM refuses DoRA"]),
        ({"use_rslora": True, "lora_r": 8}, []),
        ({"use_rslora": True, "lora_r": 64}, ["at rank 64", "forgot about twice as much"]),
    ],
    ids=str,
)
def test_what_a_variant_costs_is_said_where_it_is_chosen(
    tiny_base: Path, rows: Path, tmp_path: Path, changes: dict[str, Any], said: list[str]
) -> None:
    lines = warnings(tiny_base, rows, tmp_path, **changes)
    assert len(lines) == bool(said)
    assert all(words in lines[0] for words in said)
