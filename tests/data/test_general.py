"""The general set in two parts: what measures is never replayed, whatever becomes of the file."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from alpaca.data.general import split_general
from alpaca.data.reader import read_examples
from alpaca.prompts.example import Example

ROOT = Path(__file__).resolve().parents[2]
ROWS = read_examples(str(ROOT / "data" / "general.jsonl")).examples
TEXTS = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=20)


def test_every_row_is_in_exactly_one_part_in_its_order() -> None:
    replay, measuring = split_general(ROWS)
    assert sorted([row.row for row in replay + measuring]) == [row.row for row in ROWS]
    assert [row.row for row in measuring] == sorted(row.row for row in measuring)
    assert 0.25 < len(measuring) / len(ROWS) < 0.42


def test_the_shipped_rows_stay_on_their_sides() -> None:
    """A change here lets adapters be measured on what they were trained on."""
    replay, measuring = split_general(ROWS)
    assert (len(replay), len(measuring)) == (218, 118)
    assert [row.row for row in measuring][:12] == [5, 6, 10, 13, 17, 20, 23, 26, 30, 31, 34, 36]


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=12), st.integers(0, 5))
def test_a_row_keeps_its_side_when_others_come_or_go(texts: list[tuple[str, str]], gone: int) -> None:
    rows = [Example.single(question, more, row=number) for number, (question, more) in enumerate(texts)]
    kept = rows[gone:]
    _, all_of_them = split_general(rows)
    _, some = split_general(kept)
    assert some == [row for row in all_of_them if row in kept]


def test_another_answer_or_spelling_of_the_question_changes_nothing() -> None:
    for row in [row for row in ROWS if row.turns[0].instruction.isascii()][:60]:
        turn = row.turns[0]
        again = Example.single(f"  {turn.instruction.upper()} \n", turn.input, "written anew")
        spelled = replace(row, turns=(replace(turn, instruction=turn.instruction.upper()),))
        assert len(split_general([row])[1]) == len(split_general([spelled])[1]) == len(split_general([again])[1])


def test_training_can_import_it_without_torch() -> None:
    program = "import sys; import alpaca.data.general; assert not {'torch', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
