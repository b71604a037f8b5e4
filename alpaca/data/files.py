"""Files of rows: .json, .jsonl, .csv, .parquet and .txt, each to numbered rows.

Numbers are 1-based: the element of a JSON array, the line of a .jsonl file, the record below the header of a .csv file
(both count blank ones), the row of a .parquet table, the line on which a passage of a .txt file begins. A row that
can't be parsed while others can is `Broken`; a file that can't be read at all raises UnreadableFile with the place.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Set
from pathlib import Path
from typing import Any

from alpaca.data.plain_text import passages
from alpaca.data.shapes import Broken, RepeatedField
from alpaca.errors import UnreadableFile, UnsupportedFile
from alpaca.words import names

Rows = Iterable[tuple[int, object]]
BOM, MARK = b"\xef\xbb\xbf", "\ufeff"
UNREAD = "(not read)"  # in place of a value of a column that nobody asked for
SPREADSHEET = "save it as CSV UTF-8 and give that"
JSON_ROWS = re.compile(r'\s*\[?\s*\{\s*"')
ADVICE = dict.fromkeys((".gz", ".zip", ".zst", ".xz", ".bz2", ".tar"), "unpack it first")
ADVICE |= dict.fromkeys((".xlsx", ".xls", ".ods"), SPREADSHEET)


def read_file(path: Path, wanted: Set[str] | None = None) -> Rows:
    """The rows of a file, by its ending, or by how it begins where the ending says nothing (an uploaded file).

    `wanted`: of a table with columns, only these are read, and UNREAD stands for what the others hold; None reads all.
    """
    reader = READERS.get(path.suffix.lower()) or _by_content(path)
    if reader is None:
        advice = ADVICE.get(path.suffix.lower(), f"give one of {', '.join(READERS)}")
        raise UnsupportedFile(f"{path}: files ending in '{path.suffix}' are not read; {advice}")
    try:
        return _parquet(path, wanted) if reader is _parquet else reader(path)
    except OSError as error:
        raise UnreadableFile(f"{path}: can't be read: {error.strerror or error}") from error


def _by_content(path: Path) -> Callable[[Path], Rows] | None:
    with path.open("rb") as handle:
        start = handle.read(64).removeprefix(BOM).lstrip()
    if start.startswith(b"PAR1"):
        return _parquet
    return _jsonl if start.startswith((b"{", b"[")) else None  # _jsonl takes an array as well


def read_text(path: Path) -> str:
    """The file's text, without a byte order mark. Raises UnreadableFile for what is not UTF-8."""
    data = path.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UnreadableFile(f"{path}: is UTF-16; {_convert(path, 'UTF-16')}")
    start = len(BOM) if data.startswith(BOM) else 0
    try:
        return data[start:].decode("utf-8").lstrip(MARK)
    except UnicodeDecodeError as error:
        offset = start + error.start
        line = data.count(b"\n", 0, offset) + 1
        place = f"byte 0x{data[offset]:02x} at offset {offset} (line {line})"
        if error.reason == "unexpected end of data":
            raise UnreadableFile(f"{path}: ends inside a character, {place}; is the file complete?") from error
        raise UnreadableFile(
            f"{path}: is not UTF-8: {place}. If it is in an older encoding: {_convert(path, 'WINDOWS-1252')}"
            + ("; in a spreadsheet: save it as CSV UTF-8" if path.suffix.lower() == ".csv" else "")
        ) from error


def _convert(path: Path, encoding: str) -> str:
    return f"convert it: iconv -f {encoding} -t UTF-8 '{path}' > '{path.stem}-utf8{path.suffix}'"


def _json(path: Path) -> Rows:
    return _json_rows(path, read_text(path))


def _json_rows(path: Path, text: str) -> Rows:
    if not text.strip():
        return []
    try:
        value = _decode(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):  # JSON lines under the name .json
            return _lines(path, text)
        raise UnreadableFile(
            f"{path}: is not JSON: line {error.lineno}, column {error.colno}: {error.msg}{_cut_off(error, text)}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UnreadableFile(f"{path}: is not JSON that can be read: {_too_much(error)}") from error
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    if not isinstance(value, list):
        found = f"an object with the fields {names(list(value)[:10])}" if isinstance(value, dict) else "one value"
        raise UnreadableFile(f"{path}: holds {found}, not an array of rows")
    return enumerate(value, 1)


def _jsonl(path: Path) -> Rows:
    text = read_text(path)
    if text.lstrip().startswith("["):  # an array under the name .jsonl
        return _json_rows(path, text)
    return _lines(path, text)


def _lines(path: Path, text: str) -> Rows:
    """The rows of JSON Lines. Raises UnreadableFile for objects that are spread over several lines each."""
    first = next(filter(str.strip, text.split("\n")), "")
    if first.strip() in ("{", "[") or isinstance(_line(first), Broken):
        start = len(text) - len(text.lstrip())
        try:
            _, end = json.JSONDecoder().raw_decode(text, start)
        except (ValueError, RecursionError):
            return _line_rows(text)
        if "\n" in text[start:end]:
            raise UnreadableFile(
                f"{path}: its objects are spread over several lines each (pretty-printed); JSON Lines has one object a "
                f"line: jq -c . '{path}' > '{path.stem}-lines.jsonl'"
            )
    return _line_rows(text)


def _line_rows(text: str) -> Rows:
    # Not splitlines(): that also splits at U+2028 and the like, which may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
        line = line.lstrip(MARK)  # where files were put together, each may have brought its byte order mark
        if line.strip():
            yield number, _line(line)


def _line(line: str) -> object:
    if "\x00" in line:
        return Broken("holds NUL bytes; the file is damaged, or UTF-16")
    try:
        return _decode(line)
    except json.JSONDecodeError as error:
        return Broken(f"is not JSON: column {error.colno}: {error.msg}{_cut_off(error, line)}")
    except (ValueError, RecursionError) as error:
        return Broken(f"is not JSON that can be read: {_too_much(error)}")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    return fields if len(fields) == len(pairs) else RepeatedField(fields)


_decode: Callable[[str], Any] = json.JSONDecoder(object_pairs_hook=_pairs).decode


def _cut_off(error: json.JSONDecodeError, text: str) -> str:
    ended = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
    return "; it ends here: was it cut off?" if ended else ""


def _too_much(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"


def _csv(path: Path) -> Rows:
    text = read_text(path)
    limit = csv.field_size_limit(sys.maxsize)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    try:
        records = list(lines)
    except csv.Error as error:
        raise UnreadableFile(f"{path}: is not CSV: line {lines.line_num}: {error}") from error
    finally:
        csv.field_size_limit(limit)
    header = [name.strip() for name in records[0]] if records else []
    while header and not header[-1]:  # columns without a name at the end, which spreadsheets leave behind
        header.pop()
    if repeated := {name for name in header if header.count(name) > 1}:
        raise UnreadableFile(f"{path}: the header names '{min(repeated)}' twice")
    return ((number, _record(header, record)) for number, record in enumerate(records[1:], 1) if any(record))


def _delimiter(text: str) -> str:
    """Comma, or what a spreadsheet may have written instead, by the first line."""
    header = text[: text.find("\n")] if "\n" in text else text
    return max(",;\t", key=header.count)


def _record(header: list[str], record: list[str]) -> object:
    if not any(cell.strip() for cell in record[len(header) :]):
        record = record[: len(header)]
    if len(record) != len(header):
        return Broken(f"has {len(record)} fields where the header has {len(header)}")
    return dict(zip(header, record, strict=True))


def _parquet(path: Path, wanted: Set[str] | None = None) -> Rows:
    import pyarrow
    import pyarrow.parquet

    if not path.stat().st_size:
        return []
    try:
        there = pyarrow.parquet.read_schema(path).names
        others = dict.fromkeys((name for name in there if wanted is not None and name not in wanted), UNREAD)
        table = pyarrow.parquet.read_table(path, columns=[name for name in there if name not in others])
        rows = table.to_pylist() if table.num_columns else [{} for _ in range(table.num_rows)]
        return enumerate((row | others for row in rows), 1)
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        raise UnreadableFile(f"{path}: is not a Parquet file that can be read: {error}") from error


def _txt(path: Path) -> Rows:
    text = read_text(path)
    if JSON_ROWS.match(text):  # an upload whose type said no more than "text"
        return _jsonl(path)
    if (place := text.find("\x00")) >= 0:
        line = text.count("\n", 0, place) + 1
        raise UnreadableFile(
            f"{path}: is no text: it holds a NUL byte (line {line}). If it is UTF-16: {_convert(path, 'UTF-16LE')}"
        )
    return passages(text)


READERS: dict[str, Callable[[Path], Rows]] = {
    ".json": _json, ".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet, ".txt": _txt,
}  # fmt: skip
