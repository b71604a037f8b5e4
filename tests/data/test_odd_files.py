"""Files as databases and spreadsheets leave them behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alpaca.data.reader import read_examples
from alpaca.errors import AlpacaError, UnreadableFile, UnsupportedFile
from alpaca.prompts.example import Example

ROW = {"instruction": "Name it.", "output": "The lamp."}
READ = [Example.single("Name it.", "", "The lamp.", row=1)]


def test_a_column_of_a_parquet_file_that_nobody_reads_may_hold_anything(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    far = pyarrow.array([10**18], pyarrow.timestamp("us"))  # beyond the year 9999, as databases write "for ever"
    columns = {name: [value] for name, value in ROW.items()} | {"valid_until": far}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    dataset = read_examples(str(path))
    assert dataset.examples == READ
    assert "columns not read: valid_until (1)" in dataset.report.lines()


def test_a_column_of_a_parquet_file_that_can_not_be_read_is_a_coded_error(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    far = pyarrow.array([10**18], pyarrow.timestamp("us"))
    pyarrow.parquet.write_table(pyarrow.table({"instruction": far, "output": ["x"]}), path)
    with pytest.raises(AlpacaError, match=r"rows\.parquet"):
        read_examples(str(path))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_pretty_printed_objects_one_after_another_are_one_clear_message(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("\n".join(json.dumps(ROW, indent=2) for _ in range(50)), encoding="utf-8")
    with pytest.raises(UnreadableFile, match=r"spread over several lines each .* jq -c") as refused:
        read_examples(str(path))
    assert len(str(refused.value).splitlines()) == 1


def test_a_first_line_that_is_broken_is_still_that_lines_fault(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "a"\n' + json.dumps(ROW) + "\n", encoding="utf-8")
    with pytest.raises(AlpacaError, match="row 1: is not JSON"):
        read_examples(str(path))


def test_a_csv_with_empty_columns_and_rows_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("instruction;output;;\nName it.;The lamp.;;\n;;;\nAgain?;Yes.\n", encoding="utf-8")
    dataset = read_examples(str(path))
    assert dataset.examples == [*READ, Example.single("Again?", "", "Yes.", row=3)]
    path.write_text("instruction;output;;\nName it.;The lamp.;more;\n", encoding="utf-8")
    with pytest.raises(AlpacaError, match="row 1: has 4 fields where the header has 2"):
        read_examples(str(path))


def test_a_csv_in_the_encoding_of_a_spreadsheet_says_how_to_save_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("instruction;output\nWas heißt Mähne?;mane\n", encoding="cp1252")
    with pytest.raises(UnreadableFile, match=r"line 2.*iconv -f WINDOWS-1252 .*save it as CSV UTF-8"):
        read_examples(str(path))


@pytest.mark.parametrize("ending", [".xlsx", ".xls", ".ods"])
def test_a_spreadsheet_itself_says_how_to_save_it(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows{ending}"
    path.write_bytes(b"PK")
    with pytest.raises(UnsupportedFile, match="save it as CSV UTF-8"):
        read_examples(str(path))
