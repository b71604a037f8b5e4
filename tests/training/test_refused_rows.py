"""Rows that the base's template refuses are faults of theirs: named together, skipped on demand, told by the check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alpaca.data.check import check_rows
from alpaca.data.fix import mend
from alpaca.data.scan import scan_rows
from alpaca.data.yardstick import open_yardstick
from alpaca.errors import BadRows, NoRowsLeft
from alpaca.training.plan import Plan, make_plan
from tests.prompts.chat_templates import SHAPES
from tests.training.runs import settings, write_rows


def talk(number: int, system: str = "") -> dict[str, Any]:
    said = [{"role": "system", "content": system}] if system else []
    said += [{"role": "user", "content": f"Is it {number}?"}, {"role": "assistant", "content": f"It is {number}."}]
    return {"messages": said}


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose template knows no system text."""
    return SHAPES["Mistral"].make_base(tmp_path_factory.mktemp("bases") / "mistral")


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "mixed.jsonl", [talk(n, "Be brief." if n % 3 == 0 else "") for n in range(1, 11)])


def plan(base: Path, data: Path, **changes: Any) -> tuple[Plan, list[str]]:
    said: list[str] = []
    return make_plan(settings(base, data, data.parent / "out", val_set_size=2, **changes), said.append), said


def test_all_of_them_are_named_before_anything_is_loaded(mistral: Path, mixed: Path) -> None:
    with pytest.raises(BadRows) as refused:
        plan(mistral, mixed)
    lines = str(refused.value).splitlines()
    assert "3 of 10 rows can't be used" in lines[0] and "--skip_bad_rows" in lines[-1]
    assert [line.partition(": ")[0].split()[-1] for line in lines[1:4]] == ["3", "6", "9"]
    assert all("refuses this conversation: Conversation roles must alternate" in line for line in lines[1:4])


def test_many_of_one_kind_are_one_line(mistral: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [talk(n, "Be brief." if n % 3 == 0 else "") for n in range(1, 31)])
    with pytest.raises(BadRows) as refused:
        plan(mistral, rows)
    lines = str(refused.value).splitlines()
    assert len(lines) == 3 and " rows 3, 6, 9, 12, 15, 18, 21, 24 and 2 more: " in lines[1]


def test_they_are_skipped_and_counted_where_that_is_asked(mistral: Path, mixed: Path) -> None:
    made, said = plan(mistral, mixed, skip_bad_rows=True)
    assert made.read.bad_rows == 3 and made.read.kept == 7
    assert len(made.train.examples) + len(made.validation.examples) == 7
    assert "data        3 bad rows skipped:" in said


def test_a_file_of_nothing_else_is_refused_with_the_reason(mistral: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [talk(n, "Be brief.") for n in range(6)])
    with pytest.raises(NoRowsLeft, match="none of which can be used") as refused:
        plan(mistral, rows, skip_bad_rows=True)
    assert "roles must alternate" in str(refused.value)


def test_the_check_ends_with_its_report_and_a_fix_drops_them(mistral: Path, mixed: Path) -> None:
    scan = scan_rows(str(mixed))
    check = check_rows(scan, open_yardstick(str(mistral), "auto", 512))
    assert check.unfit() == ["3 of 10 rows can't be used"]
    assert (check.trainable, len(check.lengths.values)) == (7, 7)
    assert any("rows 3, 6, 9: " in line and "roles must alternate" in line for _, ls in check.sections() for line in ls)
    mended = mend(scan)
    assert mended.done["faulty"] == [3, 6, 9] and len(mended.examples) == 7


def test_conversations_that_become_several_examples_are_told_by_plan_and_check(tmp_path: Path) -> None:
    base = SHAPES["Qwen3"].make_base(tmp_path / "base")
    two = {"messages": [*talk(1)["messages"], *talk(2)["messages"]]}
    rows = write_rows(tmp_path / "rows.jsonl", [*(talk(n) for n in range(3, 8)), two])
    said: list[str] = []
    made = make_plan(settings(base, rows, tmp_path / "out", val_set_size=0), said.append)
    assert len(made.train.examples) == 7
    assert any("1 conversations made into one example for each answer" in line and "row 6" in line for line in said)
    check = check_rows(scan_rows(str(rows)), open_yardstick(str(base), "auto", 512))
    assert [(finding.kind, list(finding.seen)) for finding in check.findings if finding.section == "Lengths"] == [
        ("split", [6])
    ]
    assert not check.warnings
