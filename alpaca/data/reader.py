"""The one reader: any supported file or hub data set to validated examples, with every fault named."""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Mapping, Set
from pathlib import Path

from alpaca.data.columns import refuse_unknown, renamed
from alpaca.data.files import READERS, Rows, read_file
from alpaca.data.hub import HUB_ID, read_hub
from alpaca.data.report import Dataset, Fault, ReadReport
from alpaca.data.rows import parse_row
from alpaca.data.shapes import FIELDS
from alpaca.errors import BadRows, DataNotFound, NoRowsLeft, UnsupportedFile
from alpaca.paths import as_written
from alpaca.prompts.example import Example
from alpaca.words import plural

__all__ = ["Dataset", "Fault", "ReadReport", "read_examples", "refuse_bad_rows"]


def read_examples(
    path_or_hub_id: str,
    *,
    columns: Mapping[str, str] | None = None,
    skip_bad_rows: bool = False,
    max_faults: int = 20,
) -> Dataset:
    """Read a .json, .jsonl, .csv, .parquet or .txt file, or a hub data set (`owner/name`, `owner/name:split`).

    `columns`: {theirs: ours} where columns have other names (`parse_columns`). Every row is read before anything is
    refused. Bad rows raise BadRows, which lists up to `max_faults` faults, or with
    `skip_bad_rows` are left out and reported. Raises DataNotFound, UnsupportedFile or UnreadableFile for a source as a
    whole, NoRowsLeft where nothing in it can be used.
    """
    report = ReadReport(source=path_or_hub_id)
    examples: list[Example] = []
    keys: set[str] = set()
    content = hashlib.sha256()
    for number, row in open_rows(path_or_hub_id, columns):
        report.rows_read += 1
        example = parse_row(row, number, report)
        if example is None:
            continue
        examples.append(example)
        key = example.key()
        report.duplicates += key in keys
        keys.add(key)
        content.update(key.encode("ascii"))
    report.kept = len(examples)
    refuse_bad_rows(report, skip_bad_rows, max_faults)
    return Dataset(examples, report, content.hexdigest())


def open_rows(source: str, columns: Mapping[str, str] | None = None) -> Rows:
    """The numbered rows of a file or hub data set, their columns renamed.

    Raises DataNotFound, UnsupportedFile, UnreadableFile, or BadSetting for a column that is not there.
    """
    wanted = FIELDS | set(columns or ())
    seen: Counter[str] = Counter()
    for number, row in _rows(source, wanted):
        if columns and isinstance(row, Mapping):
            seen.update(map(str, row))
            row = renamed(row, columns)
        yield number, row
    if columns and seen:
        refuse_unknown(columns, seen, source)


def _rows(source: str, wanted: Set[str]) -> Rows:
    path = as_written(source)
    if path.is_dir():
        files = _data_files(path)
        raise UnsupportedFile(
            f"{source}: is a folder; give one file"
            + (f": {', '.join(str(path / name) for name in files)}" if files else f" ({', '.join(READERS)})")
        )
    if path.is_file():
        return read_file(path, wanted)
    if HUB_ID.fullmatch(source) and path.suffix.lower() not in READERS:
        return read_hub(source)
    if "://" in source:
        raise DataNotFound(f"{source}: addresses are not read; download the file first and give its path")
    files = _data_files(path.parent)
    near = difflib.get_close_matches(path.name, files, n=1)
    raise DataNotFound(
        f"{source}: there is no such file (looked in {path.parent.resolve()}"
        + (f", which has {', '.join(files)})" if files else ")")
        + (f". Did you mean {path.parent / near[0]}?" if near else "")
    )


def _data_files(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(file.name for file in folder.iterdir() if file.suffix.lower() in READERS)[:10]


def refuse_bad_rows(report: ReadReport, skip_bad_rows: bool, max_faults: int = 20) -> None:
    """Raise NoRowsLeft where nothing can be used, BadRows where something can't and is not to be skipped."""
    faults = report.fault_lines(max_faults)
    if not report.rows_read:
        raise NoRowsLeft(f"{report.source}: holds no rows")
    if not report.kept:
        empty = f", {report.empty_outputs} of them with an empty output" if report.empty_outputs else ""
        first = f"{report.source}: {plural(report.rows_read, 'row')}{empty}, none of which can be used"
        raise NoRowsLeft("\n".join([first + (":" if faults else ""), *faults]))
    if report.bad and not skip_bad_rows:
        raise BadRows(
            "\n".join(
                [
                    f"{report.source}: {report.bad_rows} of {report.rows_read} rows can't be used:",
                    *faults,
                    "Correct them, or leave them out: --skip_bad_rows. "
                    f"For a closer look, and --fix: python -m alpaca.data {report.source}",
                ]
            )
        )
