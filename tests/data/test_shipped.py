"""The data sets and prompt templates that travel with the project are what they claim to be."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from alpaca.data.reader import read_examples
from alpaca.evaluation.probes import KINDS, Probe, passes, read_probes

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data"
SETS = {"alpacas.jsonl": 150, "general.jsonl": 220, "insurance_zh.jsonl": 170}  # name: the fewest rows it may have
PROBES = DATA / "probes.jsonl"
FEWEST_PROBES = {"arithmetic": 18, "logic": 12, "knowledge": 20, "format": 14, "identity": 8}
DOMAIN_WORDS = re.compile("alpaca|insur|versicherung|保险|保険|羊驼", re.IGNORECASE)
ENGLISH_WORDS = re.compile(
    r"\b(the|of|an|is|what|in|and|to|how|who|which|give|write|you|this|these|for|translate)\b", re.I
)
SCRIPTS = {
    "han": "[\u4e00-\u9fff]",
    "kana": "[\u3040-\u30ff]",
    "cyrillic": "[\u0400-\u04ff]",
    "arabic": "[\u0600-\u06ff]",
}
SCRIPTS["devanagari"] = "[\u0900-\u097f]"
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


Row = dict[str, str]


def load_rows(name: str) -> list[Row]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def load_template_json(path: Path) -> dict[str, str]:
    return json.loads(path.read_text(encoding="utf-8"))


def normalised(text: str) -> str:
    """Letters and digits only: what two texts have in common that differ in case, spaces and punctuation."""
    return "".join(c for c in unicodedata.normalize("NFKC", text.casefold()) if c.isalnum())


def is_english(text: str) -> bool:
    return bool(ENGLISH_WORDS.search(text)) and all(c.isascii() or not c.isalpha() for c in text)


@pytest.fixture(params=sorted(SETS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def rows(name: str) -> list[Row]:
    return load_rows(name)


@pytest.fixture(scope="module")
def alpacas() -> list[Row]:
    return load_rows("alpacas.jsonl")


@pytest.fixture(scope="module")
def general() -> list[Row]:
    return load_rows("general.jsonl")


@pytest.fixture(scope="module")
def insurance() -> list[Row]:
    return load_rows("insurance_zh.jsonl")


@pytest.fixture(scope="module")
def probes() -> list[Probe]:
    return read_probes(PROBES)


# --- every set ------------------------------------------------------------------------------------------------------
def test_there_are_enough_rows_and_some_have_an_input(name: str, rows: list[Row]) -> None:
    assert len(rows) >= SETS[name]
    assert 0.05 <= sum(bool(row["input"]) for row in rows) / len(rows) <= 0.3


def test_the_readme_states_the_number_of_rows() -> None:
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    for path in DATA.glob("*.jsonl"):
        assert f"| `{path.name}` | {len(load_rows(path.name))} |" in readme


def test_every_row_has_exactly_the_three_fields_as_strings(rows: list[Row]) -> None:
    for number, row in enumerate(rows, start=1):
        assert list(row) == ["instruction", "input", "output"], f"row {number}"
        assert all(isinstance(value, str) for value in row.values()), f"row {number}"


def test_every_row_asks_and_answers_something(rows: list[Row]) -> None:
    for number, row in enumerate(rows, start=1):
        assert row["instruction"].strip(), f"row {number}"
        assert row["output"].strip(), f"row {number}"


def test_no_two_rows_ask_the_same(rows: list[Row]) -> None:
    asked = Counter(normalised(row["instruction"]) for row in rows)
    assert [text for text, times in asked.items() if times > 1] == []


def test_no_two_rows_answer_the_same(rows: list[Row]) -> None:
    answers = Counter(normalised(row["output"]) for row in rows)
    assert [text for text, times in answers.items() if times > 1] == []


def test_the_text_is_clean(rows: list[Row]) -> None:
    for number, row in enumerate(rows, start=1):
        for field, value in row.items():
            where = f"row {number}, {field}: {value!r}"
            assert value == value.strip(), where
            assert value == unicodedata.normalize("NFC", value), where
            assert not any(unicodedata.category(c) in {"Cc", "Cf", "Co", "Cn"} and c != "\n" for c in value), where
            assert "\ufffd" not in value and "\u00a0" not in value, where
            assert not re.search(r"(?<=\S) {2}| \n|\n{3}", value), where  # code is indented


@pytest.mark.parametrize("path", sorted(DATA.glob("*.jsonl")), ids=lambda path: path.name)
def test_the_file_is_utf8_with_one_plain_object_a_line(path: Path) -> None:
    raw = path.read_bytes()
    assert not raw.startswith(b"\xef\xbb\xbf") and b"\r" not in raw
    text = raw.decode("utf-8")
    assert text.endswith("}\n") and "\\u" not in text
    assert all(line.startswith(('{"instruction": ', '{"id": ')) for line in text.splitlines())


def test_the_reader_takes_every_row_as_it_stands(name: str, rows: list[Row]) -> None:
    dataset = read_examples(str(DATA / name))
    assert len(dataset.examples) == len(rows)
    assert not dataset.report.bad and not dataset.report.duplicates and not dataset.report.empty_outputs


# --- data/alpacas.jsonl ---------------------------------------------------------------------------------------------
def test_answers_about_alpacas_are_of_varied_length(alpacas: list[Row]) -> None:
    words = sorted(len(row["output"].split()) for row in alpacas)
    assert words[0] < 40 and words[-1] > 120
    assert 70 <= sum(words) / len(words) <= 120
    assert len(set(words)) > 50


def test_the_demonstration_prompt_is_not_among_the_rows(alpacas: list[Row]) -> None:
    """It shows what was learnt, so it must not have been learnt by heart."""
    assert all("tell me something about alpacas" not in row["instruction"].casefold() for row in alpacas)


# --- data/general.jsonl ---------------------------------------------------------------------------------------------
def test_the_general_set_is_in_several_languages(general: list[Row]) -> None:
    english = sum(is_english(row["instruction"]) for row in general) / len(general)
    assert 0.4 <= english <= 0.7
    for script, letters in SCRIPTS.items():
        assert sum(bool(re.search(letters, row["instruction"])) for row in general) >= 5, script
    accented = sum(bool(re.search("[à-öø-ÿąćęłńśźżğış]", row["output"])) for row in general)
    assert accented / len(general) >= 0.15


def test_general_answers_go_from_a_word_to_a_page(general: list[Row]) -> None:
    words = sorted(len(row["output"].split()) for row in general)
    assert words[0] == 1 and words[-1] > 150
    assert len(set(words)) > 60


def test_nothing_in_the_general_set_is_of_a_domain(general: list[Row]) -> None:
    assert [row for row in general if DOMAIN_WORDS.search(" ".join(row.values()))] == []


def test_code_and_json_in_general_answers_are_well_formed(general: list[Row]) -> None:
    programs = [code for row in general for code in re.findall(r"```python\n(.*?)```", row["output"], re.DOTALL)]
    objects = [row["output"] for row in general if row["output"].startswith(("{", "["))]
    assert len(programs) >= 5 and len(objects) >= 3
    for program in programs:
        compile(program, "general.jsonl", "exec")
    for text in objects:
        json.loads(text)


# --- data/insurance_zh.jsonl ----------------------------------------------------------------------------------------
def test_insurance_rows_are_chinese_and_of_the_stated_length(insurance: list[Row]) -> None:
    for number, row in enumerate(insurance, start=1):
        for field in ("instruction", "output"):
            letters = [c for c in row[field] if c.isalpha()]
            assert sum("\u4e00" <= c <= "\u9fff" for c in letters) >= 0.9 * len(letters), f"row {number}, {field}"
        assert 40 <= len(row["output"]) <= 250, f"row {number}"


def test_insurance_rows_use_chinese_punctuation(insurance: list[Row]) -> None:
    for number, row in enumerate(insurance, start=1):
        assert not re.search(r"[,?!:;()]", " ".join(row.values())), f"row {number}"


def test_answers_about_products_point_to_the_contract(insurance: list[Row]) -> None:
    hedged = sum(bool(re.search("合同|条款|为准", row["output"])) for row in insurance)
    assert hedged / len(insurance) >= 0.4


# --- data/probes.jsonl ----------------------------------------------------------------------------------------------
def test_there_are_enough_probes_of_every_kind(probes: list[Probe]) -> None:
    assert len(probes) >= 72
    kinds = Counter(probe.kind for probe in probes)
    assert set(kinds) == set(KINDS) == set(FEWEST_PROBES)
    assert all(kinds[kind] >= fewest for kind, fewest in FEWEST_PROBES.items())


def test_no_two_probes_ask_the_same(probes: list[Probe]) -> None:
    asked = Counter(normalised(probe.instruction) for probe in probes)
    assert [text for text, times in asked.items() if times > 1] == []


def test_a_probe_passes_its_answer_and_fails_its_wrong_one(probes: list[Probe]) -> None:
    for probe, row in zip(probes, load_rows(PROBES.name), strict=True):
        assert passes(probe, probe.answer), probe.id
        assert row["wrong"].strip() and not passes(probe, row["wrong"]), probe.id


def test_no_answer_to_one_probe_opens_most_of_the_others(probes: list[Probe]) -> None:
    """Or a model that says the same to everything would score."""
    for answer in ("Yes", "No", "I am an AI assistant.", "7", "Paris"):
        assert sum(passes(probe, answer) for probe in probes) <= len(probes) / 6, answer


def test_a_probe_asks_nothing_of_a_domain(probes: list[Probe]) -> None:
    """Its check may name a domain: who is asked who they are must not answer with it."""
    said = (f"{probe.instruction} {probe.input} {probe.answer}" for probe in probes)
    assert [text for text in said if DOMAIN_WORDS.search(text)] == []


def test_no_probe_is_asked_in_a_set_that_may_be_trained_on(probes: list[Probe]) -> None:
    asked = {normalised(probe.instruction) for probe in probes}
    for name in SETS:
        assert not asked & {normalised(row["instruction"]) for row in load_rows(name)}, name


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
