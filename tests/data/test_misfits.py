"""Answers that do not fit their questions: planted ones are found, clean rows are left alone, a blind base says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from alpaca.data.check import check_rows
from alpaca.data.misfits import FEWEST, Matter, matter_of, measure_matter, sample
from alpaca.data.reader import read_examples
from alpaca.data.scan import scan_rows
from alpaca.data.yardstick import open_yardstick
from alpaca.errors import BadSetting
from alpaca.prompts.example import Example
from tests.conftest import ROOT
from tests.data.test_check import GOOD, command, write


def made(rows: int, slipped: int, *, told: float = 1.0, seed: int = 0) -> Matter:
    """Losses as a base gives them: own questions tell `told` nats a token, but nothing of the first `slipped` rows."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(20, 200, rows).astype(np.float64)
    loss = 3 * tokens
    noise = draw.normal(0, 1, (rows, 3)) * np.sqrt(tokens)[:, None]
    knows = np.where(np.arange(rows) < slipped, 0.0, told * draw.uniform(0.3, 2, rows)) * tokens
    return matter_of("base", rows, range(1, rows + 1), loss - knows + noise[:, 0], loss[:, None] + noise[:, 1:], tokens)


def test_planted_misfits_are_listed_and_hardly_any_other_row_is() -> None:
    listed = made(300, 30).misfits()
    right = sum(place < 30 for place in listed)
    assert right >= 27 and right / len(listed) > 0.7


@pytest.mark.parametrize("seed", range(5))
def test_where_nothing_was_planted_next_to_nothing_is_listed(seed: int) -> None:
    assert len(made(300, 0, seed=seed).misfits()) <= 3


@pytest.mark.parametrize("seed", range(5))
def test_a_base_to_which_questions_tell_nothing_lists_nothing_and_says_so(seed: int) -> None:
    found = made(100, 0, told=0.0, seed=seed)
    assert found.blind and found.misfits() == [] and found.as_json()["blind"] is True


def test_chance_is_centred_and_as_wide_as_the_scores_of_misfits() -> None:
    found = made(3000, 3000)
    assert np.mean(found.chance) == pytest.approx(0, abs=1e-9)
    assert np.std(found.chance) == pytest.approx(np.std(found.scores), rel=0.1)


def test_a_few_rows_are_too_few_and_the_base_is_not_loaded(tiny_base: Path, tmp_path: Path) -> None:
    said: list[str] = []
    scan = scan_rows(str(write(tmp_path / "rows.jsonl", *GOOD)))
    found = measure_matter(scan.trainable(), open_yardstick(str(tiny_base), "auto", 256), 500, said.append)
    assert found.too_few and len(found.rows) == len(GOOD) and said == []
    lines = dict(check_rows(scan, None, "", found).sections())["Answers and their questions"]
    assert lines == ["not looked at: 6 rows with a question to exchange are too few to judge by"]


def test_a_sample_is_the_same_each_time_and_in_order() -> None:
    rows = [Example.single(f"q {n}", "", "a", row=n) for n in range(1, 101)]
    drawn = [row.row for row in sample(rows, 30)]
    assert drawn == sorted(set(drawn)) == [row.row for row in sample(rows, 30)] and len(drawn) == 30
    assert sample(rows, 100) == rows


def test_the_finding_names_rows_what_they_score_and_their_answers() -> None:
    rows = [Example.single(f"question {n}", "", f"answer {n}", row=n) for n in range(1, 301)]
    scan = scan_rows(str(ROOT / "data" / "alpacas.jsonl"))
    scan.examples = rows
    check = check_rows(scan, None, "", made(300, 30))
    (finding,) = [finding for finding in check.findings if finding.kind == "misfit"]
    assert 1 in finding.seen and finding.seen[1].endswith("a token: answer 1")
    assert "answers that do not seem to fit their questions" in check.verdict()
    assert len(check.as_json()["matter"]["rows"]) == 300


def test_the_command_asks_a_base_that_is_named_and_says_what_it_costs(tiny_base: Path, tmp_path: Path) -> None:
    rows = [{"instruction": f"herd {n}", "input": "", "output": f"hay {n * 37}"} for n in range(FEWEST + 5)]
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
    rows = sample(read_examples(str(ROOT / "data" / "general.jsonl")).examples, 60)
    slipped = {row.row: other for row, other in zip(rows[:6], rows[1:6] + rows[:1], strict=True)}
    planted = [row.answered(slipped[row.row].turns[-1].output) if row.row in slipped else row for row in rows]
    yardstick = open_yardstick(str(smollm2), "auto", 256)
    found = measure_matter(planted, yardstick, 60, lambda line: None)
    low = np.argsort(found.scores)[:6]
    assert sum(found.rows[place] in slipped for place in low) >= 4
    assert {found.rows[place] for place in found.misfits()} & set(slipped)
