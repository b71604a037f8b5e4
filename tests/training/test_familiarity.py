"""Before it is trained, the base is asked how well it knows the language of the rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alpaca.data.reader import read_examples
from alpaca.evaluation.history import Familiarity
from alpaca.training.familiarity import lines, spread
from tests.training.runs import make_rows, settings, train, write_rows


def test_the_run_measures_it_and_the_card_keeps_it(tiny_base: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", make_rows(20))
    said = train(settings(tiny_base, rows, tmp_path / "out"))
    noted = json.loads((tmp_path / "out" / "alpaca.json").read_text())["losses"]["per_byte"]
    assert noted["rows"] > 0 and noted["english"] > 0
    assert any(line.startswith("language") and f"{noted['rows'] / noted['english']:.1f} times" in line for line in said)


def test_a_language_that_the_base_hardly_knows_is_warned_of() -> None:
    measured, warned = lines(Familiarity(1.6, 0.8, "German"))
    assert "your answers (German) surprise the base 2.0 times as much" in measured
    assert warned.startswith("warning") and "hardly knows German" in warned and "larger base" in warned
    assert len(lines(Familiarity(1.6, 0.8, "English"))) == len(lines(Familiarity(0.9, 0.8, "German"))) == 1


@pytest.mark.parametrize(("rows", "most", "taken"), [(20, 16, 16), (5, 16, 5), (160, 16, 16), (0, 16, 0)])
def test_rows_are_taken_from_all_over_the_file(tmp_path: Path, rows: int, most: int, taken: int) -> None:
    if rows:
        examples = read_examples(str(write_rows(tmp_path / "rows.jsonl", make_rows(rows)))).examples
        found = spread(examples, most)
        assert len(found) == taken and (rows < 2 * most or found[-1].row > rows - 2 * rows / most)
    else:
        assert spread([], most) == []
