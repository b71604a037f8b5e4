"""The data sets and prompt templates that travel with the project are what they claim to be."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import pytest

from alpaca.data.reader import read_examples

ROOT = Path(__file__).resolve().parents[2]
ALPACAS = ROOT / "data" / "alpacas.jsonl"
TEMPLATES = sorted((ROOT / "templates").glob("*.json"))
TEMPLATE_KEYS = {"description", "prompt_input", "prompt_no_input", "response_split"}

WITH_INPUT = {
    "alpaca": (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nShorten.\n\n### Input:\nA long text.\n\n### Response:\n"
    ),
    "alpaca_legacy": (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nShorten.\n\n### Input:\nA long text.\n\n### Response:"
    ),
    "alpaca_short": "### Instruction:\nShorten.\n\n### Input:\nA long text.\n\n### Response:\n",
}
WITHOUT_INPUT = {
    "alpaca": (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nShorten.\n\n### Response:\n"
    ),
    "alpaca_legacy": (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nShorten.\n\n### Response:"
    ),
    "alpaca_short": "### Instruction:\nShorten.\n\n### Response:\n",
}


def load_rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in ALPACAS.read_text(encoding="utf-8").splitlines()]


def load_template_json(path: Path) -> dict[str, str]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return load_rows()


# --- data/alpacas.jsonl ---------------------------------------------------------------------------------------------
def test_there_are_enough_rows_and_some_have_an_input(rows: list[dict[str, str]]) -> None:
    assert len(rows) >= 150
    assert 0.1 <= sum(bool(row["input"]) for row in rows) / len(rows) <= 0.3


def test_the_readme_states_the_number_of_rows(rows: list[dict[str, str]]) -> None:
    readme = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    assert f"| `alpacas.jsonl` | {len(rows)} |" in readme


def test_every_row_has_exactly_the_three_fields_as_strings(rows: list[dict[str, str]]) -> None:
    for number, row in enumerate(rows, start=1):
        assert list(row) == ["instruction", "input", "output"], f"row {number}"
        assert all(isinstance(value, str) for value in row.values()), f"row {number}"


def test_every_row_asks_and_answers_something(rows: list[dict[str, str]]) -> None:
    for number, row in enumerate(rows, start=1):
        assert row["instruction"].strip(), f"row {number}"
        assert row["output"].strip(), f"row {number}"


def test_no_two_rows_ask_the_same(rows: list[dict[str, str]]) -> None:
    asked = [(row["instruction"].casefold(), row["input"].casefold()) for row in rows]
    assert len(set(asked)) == len(asked)
    answers = [row["output"] for row in rows]
    assert len(set(answers)) == len(answers)


def test_the_text_is_clean(rows: list[dict[str, str]]) -> None:
    for number, row in enumerate(rows, start=1):
        for field, value in row.items():
            where = f"row {number}, {field}: {value!r}"
            assert value == value.strip(), where
            assert value == unicodedata.normalize("NFC", value), where
            assert not any(unicodedata.category(c) in {"Cc", "Cf", "Co", "Cn"} and c != "\n" for c in value), where
            assert "\ufffd" not in value and "\u00a0" not in value, where
            assert not re.search(r" {2}| \n|\n{3}", value), where


def test_the_file_is_utf8_with_one_plain_object_a_line() -> None:
    raw = ALPACAS.read_bytes()
    assert not raw.startswith(b"\xef\xbb\xbf") and b"\r" not in raw
    text = raw.decode("utf-8")
    assert text.endswith("}\n") and "\\u" not in text
    assert all(line.startswith('{"instruction": ') for line in text.splitlines())


def test_answers_are_of_varied_length(rows: list[dict[str, str]]) -> None:
    words = sorted(len(row["output"].split()) for row in rows)
    assert words[0] < 40 and words[-1] > 120
    assert 70 <= sum(words) / len(words) <= 120
    assert len(set(words)) > 50


def test_the_demonstration_prompt_is_not_among_the_rows(rows: list[dict[str, str]]) -> None:
    """It shows what was learnt, so it must not have been learnt by heart."""
    assert all("tell me something about alpacas" not in row["instruction"].casefold() for row in rows)


def test_the_reader_takes_every_row_as_it_stands(rows: list[dict[str, str]]) -> None:
    dataset = read_examples(str(ALPACAS))
    assert len(dataset.examples) == len(rows)
    assert not dataset.report.bad and not dataset.report.duplicates and not dataset.report.empty_outputs


# --- templates/ -----------------------------------------------------------------------------------------------------
def test_the_expected_templates_are_there() -> None:
    expected = {"alpaca", "alpaca_de", "alpaca_ja", "alpaca_legacy", "alpaca_short", "alpaca_zh"}
    assert expected <= {path.stem for path in TEMPLATES}


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_template_has_the_expected_keys_and_placeholders(path: Path) -> None:
    template = load_template_json(path)
    assert set(template) == TEMPLATE_KEYS
    assert all(isinstance(value, str) and value for value in template.values())
    assert template["prompt_input"].count("{instruction}") == template["prompt_input"].count("{input}") == 1
    assert template["prompt_no_input"].count("{instruction}") == 1
    assert "{input}" not in template["prompt_no_input"]
    for prompt in (template["prompt_input"], template["prompt_no_input"]):
        assert prompt.count(template["response_split"]) == 1
        assert prompt.rstrip("\n").endswith(template["response_split"])


@pytest.mark.parametrize("name", sorted(WITH_INPUT))
def test_a_published_template_renders_byte_for_byte(name: str) -> None:
    template = load_template_json(ROOT / "templates" / f"{name}.json")
    with_input = template["prompt_input"].replace("{instruction}", "Shorten.").replace("{input}", "A long text.")
    without_input = template["prompt_no_input"].replace("{instruction}", "Shorten.")
    assert with_input.encode() == WITH_INPUT[name].encode()
    assert without_input.encode() == WITHOUT_INPUT[name].encode()
    assert template["response_split"] == "### Response:"
