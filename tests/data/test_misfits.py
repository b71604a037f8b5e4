"""Answers that do not fit their questions: planted ones are found, clean rows are left alone, a blind base says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alpaca.data.check import check_rows
from alpaca.data.languages import languages_of
from alpaca.data.misfits import FAR, FEWEST, OTHERS, Look, Losses, ask_base, look, sample
from alpaca.data.reader import read_examples
from alpaca.data.scan import scan_rows
from alpaca.data.yardstick import open_yardstick
from alpaca.errors import BadSetting
from alpaca.prompts.example import Example
from tests.conftest import ROOT
from tests.data.test_check import GOOD, command, write


def made(rows: int, slipped: int, *, told: float = 1.0, seed: int = 0) -> Losses:
    """Losses as a base gives them: own questions tell about `told` nats a token, but nothing of the first `slipped`."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(60, 200, rows).astype(np.float64)
    loss = 3 * tokens
    noise = draw.normal(0, 1, (rows, 3)) * np.sqrt(tokens)[:, None]
    knows = np.where(np.arange(rows) < slipped, 0.0, told * draw.uniform(0.3, 2, rows)) * tokens
    foreign = loss[:, None] + noise[:, 1:]
    return Losses("English", list(range(1, rows + 1)), loss - knows + noise[:, 0], foreign, tokens)


@pytest.mark.parametrize("seed", range(5))
def test_most_planted_misfits_are_listed_and_hardly_any_other_row(seed: int) -> None:
    listed = made(300, 30, seed=seed).matter().misfits()
    right = sum(place < 30 for place in listed)
    assert right >= 20 and len(listed) - right <= 2


@pytest.mark.parametrize("seed", range(5))
def test_next_to_nothing_is_listed_where_nothing_was_planted(seed: int) -> None:
    assert len(made(300, 0, seed=seed).matter().misfits()) <= 2


def test_where_questions_tell_little_a_row_must_be_all_the_lower_to_be_listed() -> None:
    matter = made(300, 30, told=0.25).matter()
    assert not matter.blind and np.median(matter.scores) < 3.5
    listed = matter.misfits()
    assert all(matter.scores[place] <= np.median(matter.scores) - FAR for place in listed) and len(listed) < 30


def test_planted_misfits_score_below_the_others() -> None:
    scores = made(300, 30).matter().scores
    assert np.mean(scores[:30, None] < scores[None, 30:]) > 0.97


@pytest.mark.parametrize("seed", range(5))
def test_a_base_to_which_questions_tell_nothing_lists_nothing(seed: int) -> None:
    found = made(100, 0, told=0.0, seed=seed).matter()
    assert found.blind and found.misfits() == []
    assert Look("base", 100, [found]).as_json()["not_judged"] == ["English"]


def test_answers_that_nothing_changes_are_not_judged() -> None:
    flat = Losses("English", [1, 2], np.ones(2), np.ones((2, 2)), np.ones(2)).matter()
    assert flat.blind and flat.misfits() == []


def test_a_score_counts_in_what_chance_makes() -> None:
    assert np.std(made(5000, 5000).matter().scores) == pytest.approx(1, rel=0.1)
    assert np.std(made(5000, 5000).matter().scores[:100]) == pytest.approx(1, rel=0.25)


def test_a_few_rows_of_a_language_are_too_few_and_no_base_is_loaded(tiny_base: Path, tmp_path: Path) -> None:
    said: list[str] = []
    scan = scan_rows(str(write(tmp_path / "rows.jsonl", *GOOD)))
    found = look(scan.trainable(), open_yardstick(str(tiny_base), "auto", 256), 500, said.append)
    assert found.asked == 0 and said == []
    (line,) = dict(check_rows(scan, None, "", found).sections())["Answers and their questions"]
    assert line.startswith("not looked at: 6 rows")


def test_a_sample_is_the_same_each_time_and_in_order() -> None:
    rows = [Example.single(f"q {n}", "", "a", row=n) for n in range(1, 101)]
    drawn = [row.row for row in sample(rows, 30)]
    assert drawn == sorted(set(drawn)) == [row.row for row in sample(rows, 30)] and len(drawn) == 30
    assert sample(rows, 100) == rows


def test_the_finding_names_rows_what_they_score_and_their_answers() -> None:
    scan = scan_rows(str(ROOT / "data" / "alpacas.jsonl"))
    scan.examples = [Example.single(f"question {n}", "", f"answer {n}", row=n) for n in range(1, 301)]
    blind = replace(made(40, 0, told=0.0).matter(), language="Turkish", rows=list(range(301, 341)))
    check = check_rows(scan, None, "", Look("the base", 400, [made(300, 30).matter(), blind]))
    (finding,) = [finding for finding in check.findings if finding.kind == "misfit"]
    row, text = next(iter(finding.seen.items()))
    assert row <= 30 and text[0] in "+-" and text.endswith(f" nats a token: answer {row}")
    assert "answers that do not seem to fit their questions" in check.verdict()
    lines = dict(check.sections())["Answers and their questions"]
    assert lines[0].startswith("English: in half of 300 rows") and lines[1].startswith("Turkish: not judged")
    assert lines[2].startswith("not looked at: 60 rows")
    assert len(check.as_json()["matter"]["rows"]) == 340


def test_the_command_asks_a_base_that_is_named_and_says_what_it_costs(tiny_base: Path, tmp_path: Path) -> None:
    rows = [{"instruction": f"What does herd {n} eat?", "input": "", "output": f"It is hay of the field {n * 37}."}
            for n in range(FEWEST + 5)]  # fmt: skip
    write(tmp_path / "rows.jsonl", *rows)
    done = command(tmp_path, "rows.jsonl", "--base_model", tiny_base, "--json", "all.json", "--fit_rows", 22)
    assert done.returncode == 0, done.stderr
    assert "22 answers, each after its own question and 2 others" in done.stderr and "tokens, about" in done.stderr
    assert "Answers and their questions" in done.stdout
    told = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))["matter"]
    assert len(told["rows"]) == 22 and told["of"] == 25
    for arguments, env in ((["--base_model", tiny_base, "--fit_rows", 0], {}), ([], {"BASE_MODEL": str(tiny_base)})):
        quiet = command(tmp_path, "rows.jsonl", *arguments, **env)
        assert quiet.returncode == 0 and "Answers and their" not in quiet.stdout and "fit:" not in quiet.stderr


def test_a_negative_number_of_rows_is_refused(tmp_path: Path) -> None:
    done = command(tmp_path, write(tmp_path / "rows.jsonl", *GOOD), "--fit_rows", -1)
    assert done.returncode == 2 and f"{BadSetting.code} BadSetting: --fit_rows is -1" in done.stderr


@pytest.mark.real
def test_answers_that_slipped_are_found_in_real_rows(smollm2: Path) -> None:
    general = read_examples(str(ROOT / "data" / "general.jsonl")).examples
    rows = [row for row in general if row.row in languages_of(general)["English"]][:60]
    slipped = {row.row: other for row, other in zip(rows[:6], rows[1:6] + rows[:1], strict=True)}
    planted = [row.answered(slipped[row.row].turns[-1].output) if row.row in slipped else row for row in rows]
    (found,) = ask_base(planted, open_yardstick(str(smollm2), "auto", 256), OTHERS, lambda line: None)
    matter = found.matter()
    low = np.argsort(matter.scores)[:6]
    assert sum(matter.rows[place] in slipped for place in low) >= 5
    right = [matter.rows[place] in slipped for place in matter.misfits()]
    assert sum(right) >= 4 and right.count(False) <= 2
