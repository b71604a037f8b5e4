"""Mending: what is changed and dropped, what is left as it was, and that a mended file has nothing left to mend."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpaca.data.check import check_rows
from alpaca.data.fix import KINDS, Mended, mend, write_rows
from alpaca.data.reader import read_examples
from alpaca.data.scan import Scan, scan_rows
from alpaca.prompts.example import Example
from tests.conftest import ROOT

GOOD = {"instruction": "Describe hay.", "input": "", "output": "Hay is dried grass."}


def mended(folder: Path, *rows: Any) -> tuple[Mended, list[Any]]:
    """What was done to `rows`, and the rows as written."""
    source, target = folder / "rows.jsonl", folder / "mended.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = mend(scan_rows(str(source)))
    write_rows(found.examples, target)
    return found, [json.loads(line) for line in target.read_text(encoding="utf-8").split("\n") if line]


def done(found: Mended) -> dict[str, list[int]]:
    return {kind: rows for kind, rows in found.done.items() if rows}


def test_good_rows_are_written_as_they_were(tmp_path: Path) -> None:
    found, rows = mended(tmp_path, GOOD, GOOD | {"output": "Grass, dried.\n\n- in the sun 🦙\n- 在田里"})
    assert rows == [GOOD, GOOD | {"output": "Grass, dried.\n\n- in the sun 🦙\n- 在田里"}]
    assert done(found) == {}
    assert found.lines() == ["nothing to mend: the rows are as they were"]


def test_rows_that_teach_nothing_are_dropped_and_named(tmp_path: Path) -> None:
    found, rows = mended(
        tmp_path, GOOD, GOOD | {"output": " "}, GOOD | {"output": "N/A"}, GOOD, {"output": "x"},
        GOOD | {"instruction": "\ufeff\x01"}, GOOD | {"output": "\x07"},
    )  # fmt: skip
    assert rows == [GOOD]
    assert done(found) == {"faulty": [5], "blank": [2, 6, 7], "placeholder_output": [3], "exact_duplicate": [4]}


def test_texts_are_cleaned(tmp_path: Path) -> None:
    found, rows = mended(
        tmp_path, {"instruction": "\ufeffDescribe hay. ", "input": "<noinput>", "output": "\nHay\x07 is\r\ndry. \n"}
    )
    assert rows == [{"instruction": "Describe hay.", "input": "", "output": "Hay is\ndry."}]
    assert done(found) == {"no_input": [1], "control": [1], "edges": [1]}


def test_a_copy_shows_only_after_cleaning(tmp_path: Path) -> None:
    found, rows = mended(tmp_path, GOOD, GOOD | {"input": "No input", "output": "Hay is dried grass. "})
    assert rows == [GOOD]
    assert done(found) == {"exact_duplicate": [2]}


def test_code_keeps_the_indent_of_its_first_line(tmp_path: Path) -> None:
    code = "    if hay:\n        eat()\n    rest()"
    _, rows = mended(tmp_path, GOOD | {"output": f"\n{code}\n"}, GOOD | {"output": "  Hay.\nGrass."})
    assert [row["output"] for row in rows] == [code, "Hay.\nGrass."]


def test_every_row_gets_the_shape_that_holds_it(tmp_path: Path) -> None:
    user, bot = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}
    system = {"role": "system", "content": "Be short."}
    found, rows = mended(
        tmp_path,
        {"messages": [user, bot]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hm."}, user, bot]},
        {"messages": [system, user, bot], "id": 7},
        GOOD | {"topic": "feed"},
    )
    assert rows == [
        {"instruction": "Hi", "input": "", "output": "Hello."},
        {"messages": [user, {"role": "assistant", "content": "Hm."}, user, bot]},
        {"messages": [system, user, bot]},
        GOOD,
    ]
    assert done(found) == {"shape": [1, 2], "extra_fields": [3, 4]}


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30) | st.sampled_from(
    ["", " ", "N/A", "<noinput>", "\ufeff", "  a\n  b", "\r\n", "None.", "\x85x", "-"]
)


@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=6))
@settings(deadline=None, max_examples=200)
def test_a_mended_file_has_nothing_left_to_mend(
    tmp_path_factory: pytest.TempPathFactory, texts: list[tuple[str, str, str]]
) -> None:
    rows = [{"instruction": instruction, "input": given, "output": output} for instruction, given, output in texts]
    found, _ = mended(tmp_path_factory.mktemp("mend"), *rows)
    target = tmp_path_factory.mktemp("again") / "rows.jsonl"
    write_rows(found.examples, target)
    again = scan_rows(str(target))
    assert not again.faults
    assert done(mend(again)) == {}
    check = check_rows(again, None)
    assert not [finding.kind for finding in check.findings if finding.mended]
    if found.examples:
        assert len(read_examples(str(target)).examples) == len(found.examples)


def test_a_row_of_one_turn_trains_the_same_in_its_new_shape(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
    mended(tmp_path, row)
    before = read_examples(str(tmp_path / "rows.jsonl")).examples
    assert before == [Example.single("Hi", "", "Hello.", row=1)]
    assert read_examples(str(tmp_path / "mended.jsonl")).examples == before


def test_a_fix_that_drops_over_a_tenth_says_so_first_and_counts_what_will_train(
    tmp_path: Path, tiny_base: Path
) -> None:
    good = [{"instruction": f"task {number}", "output": "hay"} for number in range(7)]
    long = [{"instruction": f"{number} hay" * 60, "output": "hay"} for number in range(2)]
    path = tmp_path / "rows.jsonl"
    rows = [*good, *long, good[0], {"instruction": "a"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = ["--base_model", str(tiny_base), "--cutoff_len", "64", "--fix", str(tmp_path / "better.jsonl")]
    done = subprocess.run(
        [sys.executable, "-m", "alpaca.data", str(path), *command], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.strip().splitlines()
    assert "--fix drops 2 of 11 rows, more than a tenth: 1 faulty and 1 exact copy" in first
    assert "7 rows will train; the other 2 do not fit in cutoff_len 64" in last


def test_a_fix_that_drops_little_begins_with_the_verdict(tmp_path: Path) -> None:
    scan = Scan("rows", rows_read=20)
    assert Mended([], {kind: [] for kind in KINDS} | {"blank": [1, 2]}).loss(scan) == ""
    assert Mended([], {kind: [] for kind in KINDS} | {"blank": [1, 2, 3]}).loss(scan)
