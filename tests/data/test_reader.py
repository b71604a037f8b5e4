"""The reader: every supported form, and every fault with its place."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpaca.data.hub import load_split
from alpaca.data.reader import read_examples
from alpaca.errors import AlpacaError, BadRows, DataNotFound, NoRowsLeft, UnreadableFile, UnsupportedFile
from alpaca.prompts.example import Example, Turn

ROWS = [
    {"instruction": "Name the herd's leader.", "input": "", "output": "Luna"},
    {"instruction": "翻译成中文", "input": 'The alpaca, it "hums"\nall day.', "output": "羊驼整天\r\n哼唱 🦙\u2028。"},
    {"instruction": "Übersetze;\tbitte", "input": "a,b", "output": "c"},
]
EXPECTED = [Example.single(**row, row=number) for number, row in enumerate(ROWS, 1)]
ROW = ROWS[0]


def write_json(path: Path, rows: list[Any]) -> None:
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def write_jsonl(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline="")


def write_csv(path: Path, rows: list[Any]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: list[Any]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


WRITERS = {".json": write_json, ".jsonl": write_jsonl, ".csv": write_csv, ".parquet": write_parquet}


def faults_of(path: Path, **options: Any) -> str:
    with pytest.raises(AlpacaError) as refused:
        read_examples(str(path), **options)
    return str(refused.value)


def faults_in(tmp_path: Path, *rows: Any) -> str:
    """What is said of `rows` beside a good one."""
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([ROW, *rows]), encoding="utf-8")
    with pytest.raises(BadRows) as refused:
        read_examples(str(path))
    return str(refused.value)


# --- forms --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ending", WRITERS)
def test_every_form_gives_the_same_examples(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows{ending}"
    WRITERS[ending](path, ROWS)
    dataset = read_examples(str(path))
    assert dataset.examples == EXPECTED
    assert (dataset.report.rows_read, dataset.report.kept, dataset.report.bad) == (3, 3, [])
    write_json(tmp_path / "again.json", ROWS)
    assert dataset.sha256 == read_examples(str(tmp_path / "again.json")).sha256
    write_json(tmp_path / "reversed.json", ROWS[::-1])
    assert dataset.sha256 != read_examples(str(tmp_path / "reversed.json")).sha256


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv"])
def test_byte_order_mark_and_crlf(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows{ending}"
    WRITERS[ending](path, [ROW, ROW])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    assert read_examples(str(path)).examples == [Example.single(**ROW, row=1), Example.single(**ROW, row=2)]


def test_upper_case_ending_and_a_plain_string_path_with_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "ROWS.JSON", ROWS)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_examples("~/ROWS.JSON").examples == EXPECTED


def test_line_numbers_count_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(["", json.dumps(ROW), "  ", json.dumps(ROW)]), encoding="utf-8")
    assert [example.row for example in read_examples(str(path)).examples] == [2, 4]


def test_json_lines_named_json_and_the_reverse(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.json", ROWS)
    assert read_examples(str(tmp_path / "rows.json")).examples == EXPECTED
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS, indent=2), encoding="utf-8")
    assert read_examples(str(tmp_path / "rows.jsonl")).examples == EXPECTED


def test_rows_under_data(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps({"version": 1, "data": ROWS}), encoding="utf-8")
    assert read_examples(str(tmp_path / "rows.json")).examples == EXPECTED


def test_csv_of_a_spreadsheet_with_semicolons(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        'instruction;input;output\r\n"a; ""b""";;"one\r\ntwo, three"\r\n\r\nc;d;e\r\n', encoding="utf-8", newline=""
    )
    assert read_examples(str(path)).examples == [
        Example.single('a; "b"', "", "one\r\ntwo, three", row=1),
        Example.single("c", "d", "e", row=3),
    ]


def test_fields_of_any_size(tmp_path: Path) -> None:
    long = "alpaca " * 100_000
    for ending in WRITERS:
        WRITERS[ending](tmp_path / f"rows{ending}", [{"instruction": "a", "input": "", "output": long}])
        assert read_examples(str(tmp_path / f"rows{ending}")).examples[0].turns[0].output == long
    assert csv.field_size_limit() < len(long)


def test_missing_input_null_input_and_extra_fields(tmp_path: Path) -> None:
    rows = [
        {"instruction": "a", "output": "b"},
        {"instruction": "a", "input": None, "output": "c", "id": 5, "tags": ["x", {"y": None}]},
    ]
    write_json(tmp_path / "rows.json", rows)
    assert [example.turns for example in read_examples(str(tmp_path / "rows.json")).examples] == [
        (Turn("a", "", "b"),),
        (Turn("a", "", "c"),),
    ]


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".parquet"])
def test_conversations_in_both_forms(tmp_path: Path, ending: str) -> None:
    messages = [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Bye"),
        ("assistant", "See you"),
    ]
    sharegpt = {"system": "system", "user": "human", "assistant": "gpt"}
    rows = [
        {"messages": [{"role": role, "content": text, "name": None} for role, text in messages], "conversations": None},
        {"messages": None, "conversations": [{"from": sharegpt[role], "value": text} for role, text in messages]},
    ]
    WRITERS[ending](tmp_path / f"rows{ending}", rows)
    first, second = read_examples(str(tmp_path / f"rows{ending}")).examples
    assert first.system == "Be brief."
    assert first.turns == second.turns == (Turn("Hi", "", "Hello"), Turn("Bye", "", "See you"))
    assert first.key() == second.key()


def test_sharegpt_with_user_and_assistant(tmp_path: Path) -> None:
    write_json(
        tmp_path / "r.json", [{"conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]}]
    )
    assert read_examples(str(tmp_path / "r.json")).examples == [Example.single("a", "", "b", row=1)]


# --- counts -------------------------------------------------------------------------------------------------------
def test_duplicates_empty_outputs_and_noinput_are_counted(tmp_path: Path) -> None:
    rows = [
        ROW,
        {"instruction": "a", "input": "<noinput>", "output": "b"},
        ROW,
        {"instruction": "a", "output": ""},
        {"instruction": "a", "output": " \n"},
        {"instruction": "a", "output": None},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]},
        ROW,
    ]
    write_json(tmp_path / "rows.json", rows)
    dataset = read_examples(str(tmp_path / "rows.json"))
    report = dataset.report
    assert (report.rows_read, report.kept, report.duplicates, report.empty_outputs, report.noinput) == (8, 4, 2, 4, 1)
    assert [example.row for example in dataset.examples] == [1, 2, 3, 8]
    assert dataset.examples[1].turns[0].input == ""
    assert report.lines()[1:] == [
        "4 dropped: empty output",
        "2 exact duplicates (kept)",
        "1 with <noinput> as input, taken as no input",
    ]


def test_bad_rows_can_be_skipped_and_are_counted(tmp_path: Path) -> None:
    write_json(tmp_path / "rows.json", [ROW, {"instruction": 1, "output": 2}, ROW, []])
    dataset = read_examples(str(tmp_path / "rows.json"), skip_bad_rows=True)
    assert [example.row for example in dataset.examples] == [1, 3]
    assert [(fault.row, fault.field) for fault in dataset.report.bad] == [(2, "instruction"), (2, "output"), (4, "")]
    assert dataset.report.bad_rows == 2
    assert "2 bad rows skipped:" in dataset.report.lines()


# --- faults in rows -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"instruction": 5, "output": "b"}, "row 2, instruction: is a number (5), not text"),
        ({"instruction": True, "output": "b"}, "row 2, instruction: is true, not text"),
        ({"instruction": "a", "output": {"b": 1}}, "row 2, output: is an object, not text"),
        ({"instruction": "a", "output": float("nan")}, "row 2, output: is a number (nan), not text"),
        ({"instruction": "a", "input": ["x"], "output": "b"}, "row 2, input: is a list, not text"),
        ({"instruction": " ", "output": "b"}, "row 2, instruction: is blank"),
        ({"instruction": None, "output": "b"}, "row 2, instruction: is null, not text"),
        ({"instruction": "a\ud800", "output": "b"}, "half a character (a lone surrogate), \\ud800, at position 2"),
        ({"instruction": "a", "output": "b\x00"}, "row 2, output: holds a NUL character, \\u0000, at position 2"),
        ({"prompt": "a", "response": "b"}, "instruction: is missing (fields found: prompt, response; expected {"),
        ({"instruction": "a", "response": "b"}, "row 2, output: is missing (fields found: instruction, response;"),
        ({}, "row 2, instruction: is missing (fields found: none;"),
        ({"a\nb": 1, "c": 2}, "row 2, instruction: is missing (fields found: 'a\\nb', c;"),
        ([1], "row 2: is a list, not an object"),
        ("text", "row 2: is a text, not an object"),
        (None, "row 2: is null, not an object"),
        ({"messages": "hi"}, "row 2, messages: messages is a text, not a list"),
        ({"messages": []}, "row 2, messages: messages is empty"),
        ({"messages": None}, "row 2, messages: is null, not a list"),
        ({"messages": [{"role": "user", "content": "a"}]}, "row 2, messages: ends with the user"),
        ({"messages": [{"role": "user", "content": "a"}] * 2}, "row 2, messages: message 2 is from the user"),
        ({"messages": [["user", "a"]]}, "row 2, messages: message 1 is a list, not an object"),
        ({"conversations": [{"from": "bing", "value": "a"}]}, "row 2, conversations: message 1 has the role 'bing'"),
        ({"conversations": [{"from": ["x"], "value": "a"}]}, "row 2, conversations: message 1: 'role' is a list"),
        ({"conversations": [{"from": "human"}]}, "row 2, conversations: message 1 has no 'role' (found: from)"),
        ({"conversations": 5}, "row 2, conversations: messages is a number (5)"),
    ],
)  # fmt: skip
def test_a_fault_names_file_row_field_and_value(tmp_path: Path, row: Any, fault: str) -> None:
    said = faults_in(tmp_path, row)
    assert said.startswith(f"E2002 BadRows: {tmp_path / 'rows.json'}: 1 of 2 rows can't be used:")
    assert fault in said
    assert f"{tmp_path / 'rows.json'} row 2" in said
    assert "--skip_bad_rows" in said


def test_many_faults_are_told_at_a_time_and_the_rest_counted(tmp_path: Path) -> None:
    write_json(tmp_path / "rows.json", [ROW, *({"instruction": number, "output": "x"} for number in range(30))])
    said = faults_of(tmp_path / "rows.json", max_faults=4).splitlines()
    assert [line.partition(" row ")[2] for line in said[1:5]] == [
        f"{number + 2}, instruction: is a number ({number}), not text" for number in range(4)
    ]
    assert said[5] == "  ... and 26 more"
    assert "--skip_bad_rows" in said[6] and f"python -m alpaca.data {tmp_path / 'rows.json'}" in said[6]


def test_a_repeated_field_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"instruction": "a", "output": "b"}\n{"instruction": "a", "output": "b", "output": "c"}\n'
        '{"messages": [{"role": "user", "role": "assistant", "content": "x"}]}',
        encoding="utf-8",
    )
    said = faults_of(path)
    assert "row 2: names a field twice" in said
    assert "row 3, messages: a message names a field twice" in said


def test_bad_lines_of_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [
        json.dumps(ROW),
        '{"instruction": "a", output: "b"}',
        "",
        '{"instruction": "a"',
        "nonsense",
        '{"a": "\x00"}',
    ]
    lines += ["[" * 100_000, '{"instruction": ' + "9" * 5000 + "}", '{"instruction": "cut']
    path.write_text("\n".join(lines), encoding="utf-8")
    said = faults_of(path)
    for fault in (
        "7 of 8 rows",
        "row 2: is not JSON: column 22: Expecting property name",
        "row 4: is not JSON: column 20: Expecting ',' delimiter; it ends here: was it cut off?",
        "row 5: is not JSON: column 1: Expecting value",
        "row 6: holds NUL bytes",
        "row 7: is not JSON that can be read: nested too deeply",
        "row 8: is not JSON that can be read: a number has too many digits",
        "row 9: is not JSON: column 17: Unterminated string starting at; it ends here: was it cut off?",
    ):
        assert fault in said
    assert [example.row for example in read_examples(str(path), skip_bad_rows=True).examples] == [1]


def test_csv_records_of_the_wrong_width(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("instruction,input,output\na,,b\na,b\na,b,c,d\n", encoding="utf-8")
    said = faults_of(path)
    assert "row 2: has 2 fields where the header has 3" in said
    assert "row 3: has 4 fields where the header has 3" in said


# --- faults of a whole file ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv", ".parquet"])
def test_an_empty_file_holds_no_rows(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"rows{ending}").touch()
    with pytest.raises(NoRowsLeft, match="holds no rows"):
        read_examples(str(tmp_path / f"rows{ending}"))


@pytest.mark.parametrize(("name", "text"), [("a.json", "[]"), ("a.jsonl", "\n \n"), ("a.csv", "instruction,output\n")])
def test_a_file_without_rows(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(NoRowsLeft, match="holds no rows"):
        read_examples(str(tmp_path / name))


@pytest.mark.parametrize("skip", [False, True])
def test_no_row_that_can_be_used(tmp_path: Path, skip: bool) -> None:
    write_json(tmp_path / "rows.json", [{"instruction": "a", "output": ""}, {"body": "b"}])
    with pytest.raises(NoRowsLeft) as refused:
        read_examples(str(tmp_path / "rows.json"), skip_bad_rows=skip)
    assert "2 rows, 1 of them with an empty output, none of which can be used:" in str(refused.value)
    assert "row 2, instruction: is missing" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("a.json", b'[\n {"instruction": "a"},\n {"inst', "line 3, column 3: Unterminated string"),
        ("a.json", b'[{"instruction": "a"}', "line 1, column 22: Expecting ',' delimiter; it ends here: was it"),
        ("a.json", b"[1, 2,, 3]", "line 1, column 7: Expecting value"),
        ("a.json", b'{"instruction": "a", "b": 1}', "an object with the fields instruction, b, not an array of rows"),
        ("a.json", b'"text"', "holds one value, not an array of rows"),
        ("a.json", b"[" * 200_000, "nested too deeply"),
        ("a.json", b"\x00" * 64, "is not JSON: line 1, column 1"),
        ("a.json", '[{"instruction": "ä"}]'.encode("utf-16"), "is UTF-16; convert it: iconv -f UTF-16 -t UTF-8"),
        ("a.json", '[{"instruction":\n"für"}]'.encode("latin-1"), "is not UTF-8: byte 0xfc at offset 19 (line 2)."),
        ("a.jsonl", '{"instruction": "für"}'.encode("latin-1"), "older encoding: convert it: iconv -f WINDOWS-1252"),
        ("a.csv", b"\xef\xbb\xbfinstruction,output\n\xe9,b", "byte 0xe9 at offset 22 (line 2)"),
        ("a.jsonl", '{"instruction": "羊'.encode()[:-1], "ends inside a character, byte 0xe7 at offset 17"),
        ("a.csv", b'instruction,output\na,"b\nc', "is not CSV: line 3: unexpected end of data"),
        ("a.csv", b'instruction,output\na,"b"c\n', "is not CSV: line 2: "),
        ("a.csv", b"output,output\na,b\n", "the header names 'output' twice"),
        ("a.parquet", b"PAR1 but no more", "is not a Parquet file that can be read"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_refused_with_the_place(
    tmp_path: Path, name: str, data: bytes, problem: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UnreadableFile) as refused:
        read_examples(str(tmp_path / name))
    assert str(refused.value).startswith(f"E2005 UnreadableFile: {tmp_path / name}: ")
    assert problem in str(refused.value)


def test_a_parquet_file_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    write_parquet(path, ROWS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UnreadableFile, match="is not a Parquet file"):
        read_examples(str(path))


def test_a_missing_file_lists_what_there_is(tmp_path: Path) -> None:
    write_json(tmp_path / "alpacas.json", ROWS)
    said = faults_of(tmp_path / "alpaca.json")
    assert said.startswith("E2001 DataNotFound: ")
    assert "which has alpacas.json)" in said
    assert f"Did you mean {tmp_path / 'alpacas.json'}?" in said
    assert "no such file" in faults_of(tmp_path / "nowhere" / "a.json")


def test_an_address_is_refused() -> None:
    with pytest.raises(DataNotFound, match="download the file first"):
        read_examples("https://example.org/rows.json")


def test_a_folder_or_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "b.json", ROWS)
    with pytest.raises(UnsupportedFile, match=r"is a folder; give one file: .*b\.json"):
        read_examples(str(tmp_path))
    for name, hint in (("a.md", "give one of .json, .jsonl, .csv, .parquet, .txt"), ("a.json.gz", "unpack it first")):
        (tmp_path / name).touch()
        with pytest.raises(UnsupportedFile, match=hint):
            read_examples(str(tmp_path / name))


# --- the hub ------------------------------------------------------------------------------------------------------
def test_a_hub_data_set_without_a_network_is_a_coded_error() -> None:
    with pytest.raises(DataNotFound) as refused:
        read_examples("nobody-at-all/no-such-set:train")
    assert "E2001 DataNotFound: 'nobody-at-all/no-such-set' is no file here" in str(refused.value)
    assert "HF_HUB_OFFLINE" in str(refused.value)


def test_a_name_that_is_neither_file_nor_id() -> None:
    with pytest.raises(DataNotFound, match="no such file"):
        read_examples("a/b/c")


def test_rows_of_a_data_set_repository(tmp_path: Path) -> None:
    """The layout of a hub repository, in a folder, through the library that reads the hub."""
    (tmp_path / "set").mkdir()
    write_jsonl(tmp_path / "set" / "train.jsonl", ROWS)
    write_jsonl(tmp_path / "set" / "test.jsonl", ROWS[:1])
    assert list(load_split(str(tmp_path / "set"), "train")) == list(enumerate(ROWS, 1))
    assert list(load_split(str(tmp_path / "set"), "test[:1]")) == [(1, ROWS[0])]
    with pytest.raises(DataNotFound, match="validation"):
        load_split(str(tmp_path / "set"), "validation")


# --- anything at all ----------------------------------------------------------------------------------------------
TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.fixed_dictionaries({"instruction": TEXT, "input": TEXT, "output": TEXT}), min_size=1, max_size=4)
)
def test_any_text_comes_through_every_form(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    for ending, write in WRITERS.items():
        write(folder / f"rows{ending}", rows)
        examples = read_examples(str(folder / f"rows{ending}")).examples
        assert examples == [Example.single(**row, row=number) for number, row in enumerate(rows, 1)]


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=200), ending=st.sampled_from(sorted(WRITERS)))
def test_any_bytes_are_read_or_refused_with_a_code(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, ending: str
) -> None:
    path = tmp_path_factory.mktemp("bytes") / f"rows{ending}"
    path.write_bytes(data)
    with pytest.raises(AlpacaError, match=r"^E20\d\d "):
        read_examples(str(path))
