"""Lengths: in tokens as training has them, in characters without a base; bins, coverage, bars and the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from alpaca.data.histogram import bars, draw
from alpaca.data.lengths import Lengths, in_characters, in_tokens
from alpaca.data.yardstick import open_yardstick
from alpaca.errors import BadSetting, BaseNotFound
from alpaca.prompts.example import Example


def lengths(values: list[int], cutoff_len: int | None = None) -> Lengths:
    return Lengths(np.array(values, dtype=np.int64), "tokens", "a base", cutoff_len, [], [])


def test_tokens_are_those_of_training_and_name_what_is_cut_and_left_out(tiny_base: Path) -> None:
    rows = [
        Example.single("Say hay.", "", "hay", row=3),
        Example.single("Say much.", "", "the alpaca eats hay and grass " * 60, row=5),
        Example.single("the alpaca eats hay and grass " * 60, "", "hay", row=9),
    ]
    yardstick = open_yardstick(str(tiny_base), "auto", 128)
    found = in_tokens(rows, yardstick)
    assert found.truncated == [5]
    assert found.too_long == [9]
    assert found.fitting == 2
    assert found.values.tolist() == yardstick.encode(rows).report.lengths.tolist()
    assert str(tiny_base) in found.measured_with and "template chat" in found.measured_with


def test_a_cutoff_beyond_the_base_is_the_bases_own(tiny_base: Path) -> None:
    yardstick = open_yardstick(str(tiny_base), "alpaca", 4096)
    assert yardstick.cutoff_len == 1024
    assert "beyond the base's 1024 positions" in yardstick.note


def test_a_base_that_is_not_there_and_a_tiny_cutoff_are_refused(tiny_base: Path) -> None:
    with pytest.raises(BaseNotFound):
        open_yardstick("no-such-base", "auto", 1024)
    with pytest.raises(BadSetting, match="cutoff_len is 3"):
        open_yardstick(str(tiny_base), "auto", 3)


def test_without_a_base_all_texts_of_a_row_are_counted_in_characters() -> None:
    rows = [
        Example.single("ab", "c", "def", row=1),
        Example.from_messages(
            [
                {"role": "system", "content": "1234"},
                {"role": "user", "content": "羊驼"},
                {"role": "assistant", "content": "🦙"},
            ]
        ),
    ]
    found = in_characters(rows, "no base")
    assert found.values.tolist() == [6, 7]
    assert (found.unit, found.cutoff_len, found.coverage()) == ("characters", None, {})


@pytest.mark.parametrize(
    "values", [[1], [7, 7, 7], [0, 4, 8], list(range(1, 500)), [10] * 99 + [10_000], [10] * 500 + [10_000]]
)
def test_the_bins_hold_every_row_once(values: list[int]) -> None:
    bins = lengths(values).histogram()
    assert sum(part.rows for part in bins) == len(values)
    for part in bins:
        assert part.rows == sum(part.start <= value < (part.end or 10**9) for value in values)
    assert len(bins) <= 17


def test_a_few_very_long_rows_share_the_last_bin() -> None:
    last = lengths([10] * 500 + [10_000]).histogram()[-1]
    assert (last.end, last.rows) == (None, 1)


def test_coverage_is_the_share_of_rows_that_fit_whole() -> None:
    found = lengths([100, 200, 300, 400], cutoff_len=300).coverage()
    assert found == {128: 0.25, 256: 0.5, 300: 0.75, 512: 1.0}


def test_bars_are_as_long_as_their_share_and_a_single_row_still_shows() -> None:
    lines = bars(lengths([5] * 1000 + [9]))
    assert lines[0].endswith(f"{'█' * 40} 1000")
    assert lines[-1].endswith("▏ 1")


@pytest.mark.parametrize("values", [[1], [5, 5], list(range(1, 1500)), [10] * 500 + [10_000]])
def test_the_picture_is_a_png_whatever_the_lengths(values: list[int], tmp_path: Path) -> None:
    draw(lengths(values, cutoff_len=1024), "羊驼 $x^$.jsonl", tmp_path / "lengths.png")
    data = (tmp_path / "lengths.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 5000
    assert [path.name for path in tmp_path.iterdir()] == ["lengths.png"]
