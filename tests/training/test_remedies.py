"""What a run does against forgetting where nothing is asked for, and the reason that it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alpaca.prompts.example import Example
from alpaca.training.config import FinetuneConfig
from alpaca.training.remedies import KL, RATIO, choose_kl, choose_ratio, choose_self

ASKED = [Example.single("say 1", output="one")]


@pytest.mark.parametrize("tuned", [True, False])
def test_what_is_asked_for_is_done_on_every_base(tiny_base: Path, tuned: bool) -> None:
    config = FinetuneConfig(replay_ratio=0.3, replay_kl=2, replay_self=True)
    assert choose_ratio(config, tuned) == (0.3, "as asked")
    assert choose_kl(config, tuned) == (2, "as asked")
    assert choose_self(config, tuned, tiny_base, ASKED) == (True, "as asked")
    assert choose_self(FinetuneConfig(replay_self=False), tuned, tiny_base, ASKED) == (False, "as asked")


def test_a_tuned_base_is_kept_by_its_own_answers_and_another_learns_from_general_rows(tiny_base: Path) -> None:
    config = FinetuneConfig()
    assert [choose_ratio(config, True)[0], choose_kl(config, True)[0]] == [RATIO, KL]
    assert [choose_ratio(config, False)[0], choose_kl(config, False)[0]] == [0, 0]
    assert choose_self(config, True, tiny_base, ASKED)[0]
    own, reason = choose_self(config, False, tiny_base, ASKED)
    assert not own and reason == "the base has no chat template"


@pytest.mark.parametrize(
    ("changes", "rows", "processes", "reason"),
    [
        ({"replay_kl": 0}, ASKED, "1", "replay_kl is 0"),
        ({}, ASKED, "2", "the base is sharded over the processes, and one alone may not hold it"),
        ({}, [Example.text("hay and grass")], "1", "the rows for replay are plain text, without questions"),
    ],
)
def test_where_the_base_can_t_answer_or_need_not_it_is_not_asked_and_the_reason_is_said(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], rows: list[Example], processes: str,
    reason: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("WORLD_SIZE", processes)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert choose_self(FinetuneConfig(**changes), True, tiny_base, rows) == (False, reason)
