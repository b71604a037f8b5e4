"""Probes: each condition does what data/README.md says of it, and every fault of a file is named with its place."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpaca.errors import BadRows, DataNotFound, NoRowsLeft, UnreadableFile
from alpaca.evaluation.probes import CONDITIONS, MAX_ANSWER, Probe, passes, read_probes

SHIPPED = Path(__file__).resolve().parents[2] / "data" / "probes.jsonl"
ROW = {"id": "a", "kind": "arithmetic", "instruction": "What is 9 - 4?", "check": {"number": 5}, "answer": "5"}


def probe(**check: Any) -> Probe:
    return Probe("id", "knowledge", "Which?", "", check, "")


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def faults_of(tmp_path: Path, *rows: Any) -> str:
    with pytest.raises(BadRows) as refused:
        read_probes(write(tmp_path / "probes.jsonl", *rows))
    return str(refused.value)


# --- conditions -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("phrase", "answer", "found"),
    [
        ("Paris", "The capital is PARIS.", True),
        ("Paris", "Parisian cafés", False),
        ("Rom", "**Rom**", True),
        ("Rom", "_Rom_", True),
        ("Rom", "Roman, dann Rom", True),
        ("Rom", "Roman", False),
        ("AI", "I said it again.", False),
        ("AI", "an AI-based assistant", True),
        ("4", "It has 14 legs.", False),
        ("New York", "new\n  york", True),
        ("straße", "STRASSE", True),
        ("café", "cafe\u0301", True),
        ("巴黎", "法国的首都是巴黎。", True),
        ("東京", "日本の首都は東京です", True),
        ("दिल", "दिल्ली", False),
        ("दिल्ली", "नई दिल्ली है।", True),
        ("C++", "I like C++.", True),
    ],
)
def test_a_phrase_is_found_as_whole_words_whatever_its_case(phrase: str, answer: str, found: bool) -> None:
    assert passes(probe(contains_any=[phrase]), answer) is found
    assert passes(probe(contains_all=[phrase]), answer) is found
    assert passes(probe(not_contains=[phrase]), answer) is not found


def test_any_takes_one_phrase_and_all_takes_each() -> None:
    assert passes(probe(contains_any=["sun", "moon"]), "The moon.")
    assert not passes(probe(contains_all=["sun", "moon"]), "The moon.")
    assert passes(probe(contains_all=["sun", "moon"]), "Moon and sun.")
    assert not passes(probe(not_contains=["sun", "moon"]), "The moon.")


@pytest.mark.parametrize(
    ("answer", "last"),
    [
        ("9 - 4 = 5", 5),
        ("9-4", 4),
        ("It is -4.", -4),
        ("It is −4.", -4),
        ("(2)-4", 4),
        ("1,000", 1000),
        ("1,234,567 people", 1234567),
        ("3, 4 and 15", 15),
        ("3,5", 5),
        ("2.50 euros.", 2.5),
        ("$12.", 12),
        ("60km", 60),
        ("12 of H2O", 12),
        ("共12个", 12),
        ("答案是４２", 42),
        ("٤٢", 42),
    ],
)
def test_the_last_number_counts(answer: str, last: float) -> None:
    assert passes(probe(number=last), answer)
    assert not passes(probe(number=last + 1), answer)


def test_an_answer_without_digits_has_no_number() -> None:
    assert not passes(probe(number=12), "twelve")
    assert not passes(probe(number=2), "H2O")


def test_a_pattern_minds_case_and_the_whole_answer() -> None:
    assert passes(probe(regex="^STOP$"), "  STOP\n")
    assert not passes(probe(regex="^STOP$"), "stop")
    assert passes(probe(regex="(?i)^stop$"), "Stop")
    assert not passes(probe(regex="^two"), "one\ntwo")
    assert passes(probe(regex="(?m)^two"), "one\ntwo")


@pytest.mark.parametrize(
    ("answer", "has_keys"),
    [
        ('{"name": "Ann", "age": 9, "city": "Rome"}', True),
        ('Here it is:\n```json\n{"name": "Ann", "age": 9}\n```\nDone.', True),
        ('{"name": "Ann"}', False),
        ('{"person": {"name": "Ann", "age": 9}}', False),
        ('["name", "age"]', False),
        ("name: Ann, age: 9", False),
        ('{"name": "Ann", "age": 9', False),
        ("}{", False),
    ],
)
def test_json_keys_wants_an_object_that_parses(answer: str, has_keys: bool) -> None:
    assert passes(probe(json_keys=["name", "age"]), answer) is has_keys


def test_json_nested_beyond_all_measure_is_no_object() -> None:
    assert passes(probe(json_keys=["a"]), '{"a": ' + "[" * 9 + "]" * 9 + "}")
    assert not passes(probe(json_keys=["a"]), '{"a": ' + "[" * 1_990 + "]" * 1_990 + "}")


@pytest.mark.parametrize(
    ("answer", "words"), [("Cold", 1), ("- It's  cold .", 2), ("很甜", 2), ("甜 sugar", 2), ("दिल्ली", 1)]
)
def test_words_are_counted_in_every_script(answer: str, words: int) -> None:
    assert passes(probe(max_words=words), answer)
    assert words == 1 or not passes(probe(max_words=words - 1), answer)


def test_blank_lines_are_not_counted() -> None:
    assert passes(probe(lines=3), "\nred\n\ngreen\n  \nblue\n")
    assert not passes(probe(lines=3), "red, green, blue")
    assert not passes(probe(lines=3), "red\ngreen\nblue\nblack")


@pytest.mark.parametrize(
    ("choice", "of", "answer", "passed"),
    [
        ("yes", ["yes", "no"], "Yes, because no fish can talk.", True),
        ("no", ["yes", "no"], "Yes, because no fish can talk.", False),
        ("no", ["yes", "no"], "I don't know.", False),
        ("B", ["A", "B", "C"], "It's a B.", True),
        ("B", ["A", "B", "C"], "(B)", True),
        ("A", ["A", "B"], "a horse", False),
        ("red wine", ["red", "red wine"], "Red wine.", True),
        ("小美", ["小红", "小美"], "最矮的是小美，不是小红。", True),
    ],
)
def test_the_choice_named_first_counts(choice: str, of: list[str], answer: str, passed: bool) -> None:
    assert passes(probe(choice=choice, of=of), answer) is passed


def test_all_conditions_of_a_check_must_hold() -> None:
    both = probe(contains_any=["cold"], max_words=1)
    assert passes(both, "Cold.")
    assert not passes(both, "It is cold.")
    assert not passes(both, "Hot.")


def test_an_empty_answer_passes_nothing() -> None:
    for check in ({"not_contains": ["x"]}, {"max_words": 3}, {"regex": "^"}):
        assert not passes(probe(**check), "")
        assert not passes(probe(**check), " \n\t")


def test_what_follows_the_first_characters_is_not_looked_at() -> None:
    assert passes(probe(contains_any=["end"]), "x " * (MAX_ANSWER // 2 - 2) + "end")
    assert not passes(probe(contains_any=["end"]), "x " * (MAX_ANSWER // 2) + "end")


@given(st.text())
def test_any_text_can_be_checked(answer: str) -> None:
    for each in read_probes(SHIPPED)[::10]:
        assert passes(each, answer) in (True, False)


# --- reading --------------------------------------------------------------------------------------------------------
def test_a_probe_is_read_as_it_stands(tmp_path: Path) -> None:
    full = ROW | {"id": "b", "input": "9 - 4", "wrong": "6", "source": "ignored"}
    first, second = read_probes(write(tmp_path / "p.jsonl", ROW, full))
    assert first == Probe("a", "arithmetic", "What is 9 - 4?", "", {"number": 5}, "5")
    assert second == Probe("b", "arithmetic", "What is 9 - 4?", "9 - 4", {"number": 5}, "5")


@pytest.mark.parametrize(
    ("change", "field", "problem"),
    [
        ({"id": " "}, "id", "is blank"),
        ({"kind": "trivia"}, "kind", "is 'trivia'; known are arithmetic"),
        ({"instruction": 3}, "instruction", "is a number (3), not text"),
        ({"input": None}, "input", "is null, not text"),
        ({"answer": "6"}, "answer", "fails the probe's own check"),
        ({"wrong": "5"}, "wrong", "passes the check that it is meant to fail"),
        ({"check": {}}, "check", "must be an object"),
        ({"check": "number"}, "check", "must be an object"),
        ({"check": {"contains": ["5"]}}, "check", "'contains' is no condition; known are contains_any"),
        ({"check": {"contains_any": "5"}}, "check.contains_any", "must be a list of 1 or more texts"),
        ({"check": {"contains_all": []}}, "check.contains_all", "must be a list of 1 or more texts"),
        ({"check": {"not_contains": [" "]}}, "check.not_contains", "none of them blank"),
        ({"check": {"number": "5"}}, "check.number", "is a text; it must be a number"),
        ({"check": {"number": True}}, "check.number", "is true; it must be a number"),
        ({"check": {"number": float("nan")}}, "check.number", "must be a number"),
        ({"check": {"lines": 0}}, "check.lines", "whole number of at least 1"),
        ({"check": {"max_words": 2.5}}, "check.max_words", "is a number (2.5)"),
        ({"check": {"regex": "("}}, "check.regex", "is not a regular expression"),
        ({"check": {"regex": "5" * 201}}, "check.regex", "has 201 characters; at most 200"),
        ({"check": {"regex": "^(\\w+ ?)+$"}}, "check.regex", "can take for ever"),
        ({"check": {"choice": "5", "of": ["6", "7"]}}, "check.choice", "is not among 'of'"),
        ({"check": {"choice": "5"}}, "check.choice", "is not among 'of'"),
        ({"check": {"of": ["5", "6"]}}, "check.of", "needs 'choice' beside it"),
    ],
)
def test_a_fault_is_named_with_its_row_and_field(
    tmp_path: Path, change: dict[str, Any], field: str, problem: str
) -> None:
    said = faults_of(tmp_path, ROW, ROW | {"id": "b"} | change)
    assert said.startswith("E2002 BadRows: ") and "1 of 2 probes can't be used" in said
    assert re.search(rf"row 2, {re.escape(field)}: .*{re.escape(problem)}", said), said


@pytest.mark.parametrize("field", ["id", "kind", "instruction", "answer", "check"])
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    assert f"row 1, {field}: " in faults_of(tmp_path, {name: value for name, value in ROW.items() if name != field})


def test_two_probes_can_not_share_an_id(tmp_path: Path) -> None:
    assert "row 3, id: 'a' is also the id of row 1" in faults_of(tmp_path, ROW, ROW | {"id": "b"}, ROW)


def test_lines_that_are_no_objects_are_faults_too(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(ROW) + '\n[1]\n{"id": "b", "id": "c"}\n{"id": \n', encoding="utf-8")
    with pytest.raises(BadRows) as refused:
        read_probes(path)
    said = str(refused.value)
    assert "row 2: is a list" in said and "row 3: names a field twice" in said and "row 4: is not JSON" in said
    assert "3 of 4 probes" in said


def test_a_file_that_is_not_there_or_empty_or_damaged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match=r"none\.jsonl: there is no such file"):
        read_probes(tmp_path / "none.jsonl")
    with pytest.raises(NoRowsLeft, match="holds no probes"):
        read_probes(write(tmp_path / "empty.jsonl"))
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "caf\xe9"}\n')
    with pytest.raises(UnreadableFile, match="is not UTF-8"):
        read_probes(tmp_path / "latin.jsonl")


def test_the_readme_tells_every_condition() -> None:
    readme = (SHIPPED.parent / "README.md").read_text(encoding="utf-8")
    for name in CONDITIONS:
        assert f"`{name}`" in readme
