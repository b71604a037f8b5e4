"""Probes: small questions whose answers a program can check, so that no model has to be the judge.

A probe's `check` holds one condition or several, and an answer passes if all of them hold. What each condition means is
said in `data/README.md`; this file does what stands there.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca.data.files import read_file
from alpaca.data.report import Fault, ReadReport
from alpaca.data.shapes import Broken, RepeatedField
from alpaca.errors import BadRows, DataNotFound, NoRowsLeft
from alpaca.prompts.turn import text_problem
from alpaca.words import names, type_name

KINDS = ("arithmetic", "logic", "knowledge", "format", "identity")
MAX_ANSWER = 4_000  # characters of an answer that are looked at
MAX_PATTERN = 200
MAX_FAULTS = 20
# Thai, Lao, Burmese, Khmer, kana and Han are written without spaces between words; Hangul writes particles to the word.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
ONE_UNSPACED = re.compile(f"[{UNSPACED}]")
WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
NUMBER = re.compile(r"(?:(?<![\w)\]])[-−])?(?<![A-Za-z\d])\d+(?:\.\d+)?")
# (a+)* and the like can take longer than the sun will shine; a bounded repeat such as ( \w+){2} can't.
NESTED = re.compile(r"\([^()]*[*+][^()]*\)(?:[*+]|\{\d*,\})")


@dataclass(frozen=True)
class Probe:
    """A question with its check. `kind` is one of KINDS; `answer` is a reference that passes the check."""

    id: str
    kind: str
    instruction: str
    input: str
    check: Mapping[str, Any]
    answer: str


def passes(probe: Probe, answer: str) -> bool:
    """Whether `answer` meets every condition of the probe's check. A blank answer meets none.

    Only the first 4,000 characters are looked at.
    """
    said = unicodedata.normalize("NFC", answer[:MAX_ANSWER]).strip()
    return bool(said) and all(CONDITIONS[name].holds(probe.check, said) for name in probe.check)


def read_probes(path: str | Path) -> list[Probe]:
    """Read the probes of a .jsonl file, in its order.

    Each line needs id, kind, instruction, check and answer; input and wrong (an answer that must fail) may be missing.
    Raises BadRows with every fault's row and field, among them a reference answer that fails its own check;
    DataNotFound where there is no such file, UnreadableFile where it can't be read, NoRowsLeft where it is empty.
    """
    path = Path(path)
    if not path.is_file():
        raise DataNotFound(f"{path}: there is no such file of probes")
    report = ReadReport(source=str(path))
    probes: list[Probe] = []
    rows_of: dict[str, int] = {}
    for number, row in read_file(path):
        report.rows_read += 1
        parsed = _parse(row)
        if isinstance(parsed, Probe) and parsed.id in rows_of:
            parsed = [("id", f"'{parsed.id}' is also the id of row {rows_of[parsed.id]}; give each probe its own")]
        if isinstance(parsed, Probe):
            rows_of[parsed.id] = number
            probes.append(parsed)
        else:
            report.bad += [Fault(report.source, number, field, problem) for field, problem in parsed]
    if report.bad:
        head = f"{path}: {report.bad_rows} of {report.rows_read} probes can't be used:"
        raise BadRows("\n".join([head, *report.fault_lines(MAX_FAULTS), "Correct them; data/README.md has the form"]))
    if not probes:
        raise NoRowsLeft(f"{path}: holds no probes")
    return probes


def _parse(row: object) -> Probe | list[tuple[str, str]]:
    if isinstance(row, Broken):
        return [("", row.problem)]
    if not isinstance(row, Mapping):
        return [("", f"is {type_name(row)}, not an object")]
    if isinstance(row, RepeatedField):
        return [("", "names a field twice")]
    problems: list[tuple[str, str]] = []
    for field in ("id", "kind", "instruction", "answer"):
        if field not in row:
            problems.append((field, f"is missing (fields found: {names(row)})"))
        elif problem := text_problem(row[field]) or ("" if row[field].strip() else "is blank"):
            problems.append((field, problem))
    for field in ("input", "wrong"):
        if wrong := text_problem(row.get(field, "")):
            problems.append((field, wrong))
    if not problems and row["kind"] not in KINDS:
        problems.append(("kind", f"is '{row['kind'][:40]}'; known are {', '.join(KINDS)}"))
    problems += _check_problems(row.get("check"))
    if problems:
        return problems
    probe = Probe(row["id"], row["kind"], row["instruction"], row.get("input", ""), dict(row["check"]), row["answer"])
    if not passes(probe, probe.answer):
        return [("answer", "fails the probe's own check")]
    if passes(probe, row.get("wrong", "")):
        return [("wrong", "passes the check that it is meant to fail")]
    return probe


def _check_problems(check: object) -> list[tuple[str, str]]:
    if not isinstance(check, Mapping) or not check:
        return [("check", f"must be an object with one or more of {', '.join(CONDITIONS)}")]
    if isinstance(check, RepeatedField):
        return [("check", "names a condition twice")]
    found: list[tuple[str, str]] = []
    for name in check:
        if name not in CONDITIONS:
            found.append(("check", f"'{name[:40]}' is no condition; known are {', '.join(CONDITIONS)}"))
        elif problem := CONDITIONS[name].problem(check):
            found.append((f"check.{name}", problem))
    return found


# --- conditions: each says what is wrong with its value, and whether an answer meets it -----------------------------
@dataclass(frozen=True)
class Condition:
    """`problem(check)` is "" where the condition's value is in order; `holds(check, answer)` needs such a value."""

    problem: Callable[[Mapping[str, Any]], str]
    holds: Callable[[Mapping[str, Any], str], bool]


def _fold(text: str) -> str:
    """Lower case and single spaces: the form in which phrases are looked for."""
    return " ".join(unicodedata.normalize("NFC", text.casefold()).split())


def _find(text: str, phrase: str) -> int:
    """Where `phrase` first stands in `text` with no word running on at either end; -1 where it does not."""
    start = text.find(phrase)
    while start >= 0:
        end = start + len(phrase)
        if not _one_word(text[max(start - 1, 0) : start], phrase[0]) and not _one_word(phrase[-1], text[end : end + 1]):
            return start
        start = text.find(phrase, start + 1)
    return -1


def _one_word(left: str, right: str) -> bool:
    """Whether two neighbouring characters belong to the same word."""
    pair = left + right
    return len(pair) == 2 and all(unicodedata.category(c)[0] in "LMN" for c in pair) and not ONE_UNSPACED.search(pair)


def _says(answer: str, phrase: str) -> bool:
    return _find(_fold(answer), _fold(phrase)) >= 0


def _last_number(answer: str) -> float:
    """The last number in the answer, not-a-number where there is none."""
    found = NUMBER.findall(THOUSANDS.sub("", answer))
    return float(found[-1].replace("−", "-")) if found else math.nan


def _object_in(answer: str) -> Mapping[str, Any]:
    """The JSON object that the answer is, or that stands in it from its first to its last brace; else an empty one."""
    try:
        value = json.loads(answer[answer.find("{") : answer.rfind("}") + 1])
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, Mapping) else {}


def _word_count(answer: str) -> int:
    return sum(any(c.isalnum() for c in word) for word in WORD.findall(answer))


def _line_count(answer: str) -> int:
    return sum(bool(line.strip()) for line in answer.splitlines())


def _chosen(answer: str, choices: list[str]) -> str:
    """The choice that the answer names first; of two at the same place the longer; "" where it names none."""
    letters = all(len(choice) == 1 for choice in choices)  # then case matters, or "a" would be found in every sentence
    text = " ".join(answer.split()) if letters else _fold(answer)
    places = ((_find(text, choice if letters else _fold(choice)), -len(choice), choice) for choice in choices)
    return min((place for place in places if place[0] >= 0), default=(0, 0, ""))[2]


def _texts_problem(name: str, least: int = 1) -> Callable[[Mapping[str, Any]], str]:
    def problem(check: Mapping[str, Any]) -> str:
        value = check[name]
        sound = isinstance(value, list) and all(not text_problem(text) and text.strip() for text in value)
        return "" if sound and len(value) >= least else f"must be a list of {least} or more texts, none of them blank"

    return problem


def _count_problem(name: str) -> Callable[[Mapping[str, Any]], str]:
    def problem(check: Mapping[str, Any]) -> str:
        value = check[name]
        sound = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        return "" if sound else f"is {type_name(value)}; it must be a whole number of at least 1"

    return problem


def _number_problem(check: Mapping[str, Any]) -> str:
    value = check["number"]
    sound = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e15
    return "" if sound else f"is {type_name(value)}; it must be a number of at most 15 digits"


def _regex_problem(check: Mapping[str, Any]) -> str:
    pattern = check["regex"]
    if problem := text_problem(pattern):
        return problem
    if len(pattern) > MAX_PATTERN:
        return f"has {len(pattern)} characters; at most {MAX_PATTERN} are taken"
    if found := NESTED.search(pattern):
        return f"repeats a group that repeats something itself, {found[0]}, which can take for ever; write it flatter"
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return f"is not a regular expression: {error}"
    return ""


def _choice_problem(check: Mapping[str, Any]) -> str:
    return "" if isinstance(check.get("of"), list) and check["choice"] in check["of"] else "is not among 'of'"


def _of_problem(check: Mapping[str, Any]) -> str:
    return _texts_problem("of", least=2)(check) or ("" if "choice" in check else "needs 'choice' beside it")


CONDITIONS = {
    "contains_any": Condition(
        _texts_problem("contains_any"), lambda check, said: any(_says(said, text) for text in check["contains_any"])
    ),
    "contains_all": Condition(
        _texts_problem("contains_all"), lambda check, said: all(_says(said, text) for text in check["contains_all"])
    ),
    "not_contains": Condition(
        _texts_problem("not_contains"), lambda check, said: not any(_says(said, text) for text in check["not_contains"])
    ),
    "number": Condition(_number_problem, lambda check, said: abs(_last_number(said) - check["number"]) < 1e-6),
    "regex": Condition(_regex_problem, lambda check, said: re.search(check["regex"], said) is not None),
    "json_keys": Condition(
        _texts_problem("json_keys"), lambda check, said: _object_in(said).keys() >= set(check["json_keys"])
    ),
    "max_words": Condition(_count_problem("max_words"), lambda check, said: _word_count(said) <= check["max_words"]),
    "lines": Condition(_count_problem("lines"), lambda check, said: _line_count(said) == check["lines"]),
    "choice": Condition(_choice_problem, lambda check, said: _chosen(said, check["of"]) == check["choice"]),
    "of": Condition(_of_problem, lambda check, said: True),  # belongs to choice
}
