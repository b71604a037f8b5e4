"""Long work: lines with rate and time left in a log, a bar on a terminal, and at the end what it took."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import pytest

from alpaca import progress as module
from alpaca.progress import progress


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What a log is told, where every step of the work is worth a line."""
    monkeypatch.setattr(module, "LOG_SECONDS", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    yield []


def matches(lines: list[str], *patterns: str) -> None:
    assert len(lines) == len(patterns), lines
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), (line, pattern)


def test_a_log_has_the_beginning_the_way_and_the_end(lines: list[str]) -> None:
    with progress("fetching", 3_000_000, say=lines.append) as advance:
        advance(1_000_000)
        advance(2_000_000)
    matches(
        lines, r"fetching \(3 MB\)", r"fetching: 1 MB of 3 MB, [\d.]+ [kMG]?B/s, [\d,]+ s left",
        r"fetching: 3 MB of 3 MB, [\d.]+ [kMG]?B/s, 0 s left", r"fetching: done, 3 MB in \d+\.\d s",
    )  # fmt: skip


def test_other_things_than_bytes_are_counted_too(lines: list[str]) -> None:
    with progress("answers", 2001, "answer", lines.append) as advance:
        advance(1)
    matches(
        lines, r"answers \(2,001 answers\)", r"answers: 1 of 2,001 answers, [\d,.]+ answers/s, [\d,]+ s left",
        r"answers: done, 1 answer in \d+\.\d s",
    )  # fmt: skip


def test_work_that_takes_seconds_for_each_says_how_many(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 40.0, 50.0, 51.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress("rows", 6, "row", lines.append, more=lambda: "1 rejected") as advance:
        advance(0)
        advance(4)
    matches(
        lines, r"rows \(6 rows\)", r"rows: 0 of 6 rows; 1 rejected",
        r"rows: 4 of 6 rows, 12 s/row, 25 s left; 1 rejected", r"rows: done, 4 rows in 51\.0 s",
    )  # fmt: skip


def test_work_without_a_known_end_says_how_much_is_done(lines: list[str]) -> None:
    with progress("fetching", 0, say=lines.append) as advance:
        advance(0)
        advance(1_000_000)
    matches(lines, "fetching", r"fetching: 1 MB, [\d.]+ [kMG]?B/s", r"fetching: done, 1 MB in \d+\.\d s")


def test_work_that_failed_is_not_said_to_be_done(lines: list[str]) -> None:
    with pytest.raises(OSError), progress("fetching", 10, say=lines.append):
        raise OSError
    matches(lines, r"fetching \(10 B\)")


def test_a_terminal_gets_a_bar_and_then_one_line(
    lines: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress("fetching", 3_000_000, say=lines.append) as advance:
        advance(3_000_000)
    assert "fetching" in capsys.readouterr().err
    matches(lines, r"fetching: done, 3 MB in \d+\.\d s")
