"""Files of rows: .json, .jsonl, .csv and .parquet, each to numbered rows.

Numbers are 1-based: the element of a JSON array, the line of a .jsonl file, the record below the header of a .csv file
(both count blank ones), the row of a .parquet table. A row that can't be parsed while others can is `Broken`; a file
that can't be read at all raises UnreadableFile with the place.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from alpaca.data.rows import Broken, RepeatedField
from alpaca.errors import UnreadableFile, UnsupportedFile
from alpaca.words import names

Rows = Iterable[tuple[int, object]]
BOM = b"\xef\xbb\xbf"


def read_file(path: Path) -> Rows:
    """The rows of a file, by its ending, or by how it begins where the ending says nothing (an uploaded file)."""
    reader = READERS.get(path.suffix.lower()) or _by_content(path)
    if reader is None:
        packed = path.suffix.lower() in (".gz", ".zip", ".zst", ".xz", ".bz2", ".tar")
        raise UnsupportedFile(
            f"{path}: files ending in '{path.suffix}' are not read; "
            + ("unpack it first" if packed else f"give one of {', '.join(READERS)}")
        )
    try:
        return reader(path)
    except OSError as error:
        raise UnreadableFile(f"{path}: can't be read: {error.strerror or error}") from error


def _by_content(path: Path) -> Callable[[Path], Rows] | None:
    with path.open("rb") as handle:
        start = handle.read(64).removeprefix(BOM).lstrip()
    if start.startswith(b"PAR1"):
        return _parquet
    return _jsonl if start.startswith((b"{", b"[")) else None  # _jsonl takes an array as well


def _text(path: Path) -> str:
    data = path.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UnreadableFile(f"{path}: is UTF-16; {_convert(path, 'UTF-16')}")
    start = len(BOM) if data.startswith(BOM) else 0
    try:
        return data[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        offset = start + error.start
        line = data.count(b"\n", 0, offset) + 1
        place = f"byte 0x{data[offset]:02x} at offset {offset} (line {line})"
        if error.reason == "unexpected end of data":
            raise UnreadableFile(f"{path}: ends inside a character, {place}; is the file complete?") from error
        raise UnreadableFile(
            f"{path}: is not UTF-8: {place}. If it is in an older encoding: {_convert(path, 'WINDOWS-1252')}"
        ) from error


def _convert(path: Path, encoding: str) -> str:
    return f"convert it: iconv -f {encoding} -t UTF-8 '{path}' > '{path.stem}-utf8{path.suffix}'"


def _json(path: Path) -> Rows:
    return _json_rows(path, _text(path))


def _json_rows(path: Path, text: str) -> Rows:
    if not text.strip():
        return []
    try:
        value = _decode(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):  # JSON lines under the name .json
            return _line_rows(text)
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
    text = _text(path)
    if text.lstrip().startswith("["):  # an array under the name .jsonl
        return _json_rows(path, text)
    return _line_rows(text)


def _line_rows(text: str) -> Rows:
    # Not splitlines(): that also splits at U+2028 and the like, which may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
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
    text = _text(path)
    limit = csv.field_size_limit(sys.maxsize)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    try:
        records = list(lines)
    except csv.Error as error:
        raise UnreadableFile(f"{path}: is not CSV: line {lines.line_num}: {error}") from error
    finally:
        csv.field_size_limit(limit)
    header = [name.strip() for name in records[0]] if records else []
    if repeated := {name for name in header if header.count(name) > 1}:
        raise UnreadableFile(f"{path}: the header names '{min(repeated)}' twice")
    return ((number, _record(header, record)) for number, record in enumerate(records[1:], 1) if record)


def _delimiter(text: str) -> str:
    """Comma, or what a spreadsheet may have written instead, by the first line."""
    header = text[: text.find("\n")] if "\n" in text else text
    return max(",;\t", key=header.count)


def _record(header: list[str], record: list[str]) -> object:
    if len(record) != len(header):
        return Broken(f"has {len(record)} fields where the header has {len(header)}")
    return dict(zip(header, record, strict=True))


def _parquet(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet

    if not path.stat().st_size:
        return []
    try:
        return enumerate(pyarrow.parquet.read_table(path).to_pylist(), 1)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UnreadableFile(f"{path}: is not a Parquet file that can be read: {error}") from error


READERS: dict[str, Callable[[Path], Rows]] = {".json": _json, ".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
