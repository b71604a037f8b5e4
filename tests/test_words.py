"""Numbers, rows and strangers' texts as they are said everywhere."""

from __future__ import annotations

import pytest

from alpaca.words import duration, numbered_rows, percent, shown, visible


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (7500, "2 h 5 min")]
)
def test_a_duration_is_spelled_out(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("rows", "said"), [([3], "row 3"), ([1, 2], "rows 1, 2"), (range(1, 11), "rows 1, 2, 3, 4, 5, 6, 7, 8 and 2 more")]
)
def test_rows_are_named_and_what_is_beyond_is_counted(rows: list[int], said: str) -> None:
    assert numbered_rows(rows) == said


@pytest.mark.parametrize(
    ("part", "said"), [(0, "0.0 %"), (1, "0.1 %"), (50_000, "50.0 %"), (99_999, "99.9 %"), (100_000, "100.0 %")]
)
def test_a_share_is_all_or_nothing_only_where_it_is(part: int, said: str) -> None:
    assert percent(part, 100_000) == said


def test_a_text_can_neither_hide_steer_nor_turn_around() -> None:
    assert visible("a\n\tb \x1b \x7f \u202e \ufeff \U000e0041") == "a\n\tb ␛ ␡ \\u202e \\ufeff \\ue0041"
    assert visible("می\u200cخواهم 👩\u200d👧 羊驼") == "می\u200cخواهم 👩\u200d👧 羊驼"
    assert shown("a\n\u202e b", 20) == "a \\u202e b"
    assert shown("x" * 500, 100) == "x" * 99 + "…"
