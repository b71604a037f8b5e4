"""What a card tells of the adapters before it, and where those are that an adapter answers together with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alpaca.adapter.ancestry import (
    BESIDE,
    CONTINUED,
    MOST,
    Ancestor,
    asked_together,
    file_sha256,
    find_together,
    parse_ancestor,
)
from alpaca.errors import AdapterNotFound, BadAdapter

FIRST = Ancestor("lora-a", BESIDE, "a" * 64, "base", "0123", "rows.jsonl", "b" * 64, 20, "2026-11-01")
CHAIN = Ancestor("lora-c", CONTINUED, "c" * 64, ancestor=replace(FIRST, ancestor=Ancestor("z", CONTINUED, "d" * 64)))


def test_a_card_gives_back_what_was_written() -> None:
    assert parse_ancestor(CHAIN.card()) == CHAIN
    assert parse_ancestor({}) is None


def test_what_is_asked_together_is_what_anyone_was_trained_beside() -> None:
    assert [needed.name for needed in asked_together(CHAIN)] == ["lora-a"]
    assert list(asked_together(Ancestor("a", CONTINUED, "c" * 64))) == []


WRONG: list[dict[str, Any]] = [
    {"name": "../lora-a"}, {"name": ""}, {"name": ".hidden"}, {"name": "a\nb"}, {"name": "a" * 300}, {"name": 5},
    {"how": "inherited"}, {"weights_sha256": "short"}, {"rows": "many"}, {"rows": True}, {"data_source": "x" * 201},
    {"ancestor": ["lora-z"]}, {"ancestor": {"name": "z"}},
]  # fmt: skip


@pytest.mark.parametrize("changes", WRONG, ids=str)
def test_a_strangers_card_that_tells_anything_else_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadAdapter, match="the card's ancestor"):
        parse_ancestor(FIRST.card() | changes)


def test_generations_without_end_are_refused() -> None:
    told: dict[str, Any] = FIRST.card()
    for _ in range(MOST):
        told = FIRST.card() | {"ancestor": told}
    with pytest.raises(BadAdapter, match=f"more than {MOST} generations"):
        parse_ancestor(told)


def test_the_others_are_found_by_name_and_weights(tmp_path: Path) -> None:
    for folder, content in (("lora-a", b"one"), ("elsewhere", b"one"), ("other", b"two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "weights").write_bytes(content)
    ancestor = replace(FIRST, weights_sha256=file_sha256(tmp_path / "lora-a" / "weights"))
    new = tmp_path / "lora-b"
    assert find_together(new, "weights", ancestor) == [tmp_path / "lora-a"]
    given = [tmp_path / "other", tmp_path / "elsewhere"]
    assert find_together(new, "weights", ancestor, given) == [tmp_path / "elsewhere"]
    (tmp_path / "lora-a" / "weights").write_bytes(b"trained again")
    with pytest.raises(AdapterNotFound, match=r"was trained beside lora-a .* is not in .*lora-a: put its folder there"):
        find_together(new, "weights", ancestor)
