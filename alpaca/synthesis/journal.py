"""The journal beside the rows: every answer that came and every row that was made of it, in the order of their coming.

It is the truth about the work: a run that is killed at any moment and begun again reads it, asks nothing twice, and
writes into the file of rows what is missing there. Its lines are of three kinds: ``{"work": …}``, what the work is;
``{"answer": key, …}``, what a model answered; ``{"from": …, "rows": […], "counts": {…}}``, what became of it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca.errors import RowsUnwritten, SynthesisBusy, WorkChanged
from alpaca.files import locked, written_aside
from alpaca.synthesis.lines import Lines, as_line, whole_lines
from alpaca.synthesis.question import Reply

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Made:
    """What became of an answer, or of a row to translate. `taken`: how much of it was used, where not all was."""

    source: str
    rows: list[Row]
    counts: Mapping[str, int]
    taken: int | None = None


class Journal:
    """The journal of the rows in `output`. One process at a time may have it."""

    def __init__(self, output: Path) -> None:
        """Raises WorkChanged where the rows that are there are not the journal's."""
        self.output = output
        self.path = journal_path(output)
        self.answers: dict[str, Reply] = {}
        self.made: dict[str, Made] = {}
        self.counts: Counter[str] = Counter()
        self._rows_made: list[tuple[str, Row]] = []
        self._work: dict[str, Any] | None = None
        lines = whole_lines(self.path)
        for number, line in enumerate(lines, 1):
            self._read(number, line)
        self._refuse_others()
        self._lines = Lines(self.path)
        self._rows: Lines | None = None

    @property
    def rows(self) -> Iterator[Row]:
        """All rows that were made, in the order in which they were."""
        return (row for _, row in self._rows_made)

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens of all questions and of all answers, those of earlier runs included."""
        return sum(r.tokens_in for r in self.answers.values()), sum(r.tokens_out for r in self.answers.values())

    def begin(self, work: Mapping[str, Any]) -> None:
        """Say what the work is, and have the file of rows hold all that was made.

        Raises WorkChanged where another work was begun here.
        """
        if self._work is None:
            self._work = dict(work)
            self._lines.add({"work": self._work})
        for name in sorted({*work, *self._work}):
            if work.get(name) != self._work.get(name):
                raise WorkChanged(
                    f"{self.output} was begun with {name} {_short(self._work.get(name))}, and now it is "
                    f"{_short(work.get(name))}: go on as it was begun, or give another --output"
                )
        expected, there = [as_line(row) for row in self.rows], whole_lines(self.output)
        if there != expected[: len(there)]:  # it was put in order at an end
            self._write(expected)
            there = expected
        self._rows = Lines(self.output)
        for row in list(self.rows)[len(there) :]:
            self._rows.add(row)

    def answered(self, key: str, reply: Reply) -> None:
        """Keep an answer."""
        self.answers[key] = reply
        self._lines.add(
            {"answer": key, "text": reply.text, "whole": reply.whole, "tokens": [reply.tokens_in, reply.tokens_out]}
        )

    def make(self, made: Made) -> None:
        """Keep what became of an answer or a row, and write its rows. The journal comes first, so that a row is never
        in the file without it."""
        assert self._rows is not None, "begin comes first"
        line: dict[str, Any] = {"from": made.source, "rows": made.rows, "counts": dict(made.counts)}
        line |= {} if made.taken is None else {"taken": made.taken}
        self._lines.add(line)
        self._remember(made)
        for row in made.rows:
            self._rows.add(row)

    def put_in_order(self, sources: Sequence[str]) -> None:
        """Write the rows in the order of what they were made from; those of unknown sources come last."""
        places = {source: place for place, source in enumerate(sources)}
        ordered = sorted(self._rows_made, key=lambda made: places.get(made[0], len(places)))
        self._write([as_line(row) for _, row in ordered])

    def close(self) -> None:
        self._lines.close()
        if self._rows is not None:
            self._rows.close()

    def _write(self, lines: list[bytes]) -> None:
        try:
            with written_aside(self.output) as aside:
                aside.write_bytes(b"".join(lines))
        except OSError as error:
            raise RowsUnwritten(f"{self.output} can't be written: {error.strerror}; nothing of it is lost") from None

    def _read(self, number: int, line: bytes) -> None:
        try:
            found = json.loads(line)
            if "work" in found:
                self._work = found["work"]
            elif "answer" in found:
                self.answers[found["answer"]] = Reply(found["text"], found["whole"], *found["tokens"])
            else:
                self._remember(Made(found["from"], found["rows"], found["counts"], found.get("taken")))
        except (ValueError, KeyError, TypeError) as error:
            raise WorkChanged(
                f"{self.path}, line {number}: can't be read ({type(error).__name__}: {error}); the file was changed. "
                "Remove that line, or give another --output"
            ) from None

    def _remember(self, made: Made) -> None:
        self.counts.update(made.counts)
        self.made[made.source] = made
        self._rows_made += [(made.source, row) for row in made.rows]

    def _refuse_others(self) -> None:
        there = whole_lines(self.output)
        known = [as_line(row) for row in self.rows]
        if there == known[: len(there)] or sorted(there) == sorted(known):
            return
        if not self.path.exists():
            raise WorkChanged(
                f"--output {self.output} is there already, and has no journal ({self.path.name}) beside it to go on "
                "from; give a new name"
            )
        raise WorkChanged(
            f"{self.output} is not what {self.path.name} says was written there: it was changed since. Move it away to "
            "have it written anew, or give another --output"
        )


@contextmanager
def opened(output: Path) -> Iterator[Journal]:
    """The journal of `output`, while no other process has it. Raises SynthesisBusy, WorkChanged and RowsUnwritten."""

    def busy(waited: float) -> None:
        raise SynthesisBusy(f"another process is writing {output}; wait for it to end, or give another --output")

    lock = output.with_name(f".{output.name}.lock")
    with locked(lock, busy):
        try:
            journal = Journal(output)
            try:
                yield journal
            finally:
                journal.close()
        finally:
            lock.unlink(missing_ok=True)


def journal_path(output: Path) -> Path:
    """mine.journal.jsonl for mine.jsonl."""
    return output.with_name(f"{output.stem}.journal.jsonl")


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"
