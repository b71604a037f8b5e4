"""Rows from seed tasks: as many as wanted, each reason counted, and nothing asked twice, whatever happens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alpaca.synthesis.__main__ import main
from tests.conftest import ROOT
from tests.synthesis.misbehaving import Asked, Misbehaving, misbehaving
from tests.synthesis.running import card_of, kill_at, rows_of, thinker

SEEDS = str(ROOT / "data" / "seed_tasks.jsonl")


def options(server: Misbehaving, output: Path, rows: int, *more: str) -> list[str]:
    return [
        "instruct", "--url", server.url, "--seed_tasks", SEEDS, "--rows", str(rows), "--output", str(output), *more,
    ]  # fmt: skip


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command ends with."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_rows_come_with_a_card_and_a_second_run_asks_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "mine.jsonl"
    with misbehaving(thinker) as server:
        main(options(server, output, 25))
        asked = len(server.asked)
        main(options(server, output, 25))
        assert len(server.asked) == asked <= 5
    rows = rows_of(output)
    assert len(rows) == 25 and all(row.keys() == {"instruction", "input", "output"} for row in rows)
    assert len({row["instruction"] for row in rows}) == 25
    card = card_of(output)
    assert card["rows"] == 25 and card["model"]["name"] == "one" and card["tokens"]["in"] == 100 * card["answers"]
    assert "No two tasks are alike" in card["prompts"]["rules"] and "Task 1" in card["prompts"]["first_question"]
    assert "licence" in card["licence"] and card["settings"]["temperature"] == 1.0
    assert "rows: 25" in capsys.readouterr().out


def test_more_rows_go_on_from_those_that_are_there(tmp_path: Path) -> None:
    output = tmp_path / "mine.jsonl"
    with misbehaving(thinker) as server:
        main(options(server, output, 7))
        before = output.read_bytes()
        main(options(server, output, 31))
    assert output.read_bytes().startswith(before) and len(rows_of(output)) == 31
    assert len(server.answered) == len(set(server.answered))


def test_as_many_are_asked_at_once_as_wanted_and_no_more_than_needed(tmp_path: Path) -> None:
    with misbehaving(thinker, seconds=0.1) as server:
        main(options(server, tmp_path / "a.jsonl", 60, "--concurrency", "4"))
        assert server.most_at_once == 4
    with misbehaving(thinker, seconds=0.1) as server:
        main(options(server, tmp_path / "b.jsonl", 3, "--concurrency", "64"))
    assert len(server.asked) <= 2


def test_a_run_that_is_killed_goes_on_without_asking_twice(tmp_path: Path) -> None:
    """It is killed as rows are written, and the disk lost two of them, and holds half a line of each file."""
    output = tmp_path / "mine.jsonl"
    with misbehaving(thinker, "broken", "half", seconds=0.05) as server:
        arguments = options(server, output, 120, "--concurrency", "3")
        kill_at(40, output, *arguments)
        journal = tmp_path / "mine.journal.jsonl"
        output.write_bytes(b"".join(output.read_bytes().splitlines(keepends=True)[:-2]))
        for path in (output, journal):
            with path.open("ab") as file:
                file.write(b'{"instruction": "Descr\xc3')
        kept = [json.loads(line) for line in journal.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        before = {line["answer"] for line in kept if "answer" in line}
        main(arguments)
    rows = rows_of(output)
    assert len(rows) == 120 and len({row["instruction"] for row in rows}) == 120
    lines = rows_of(journal)
    keys = [line["answer"] for line in lines if "answer" in line]
    assert len(keys) == len(set(keys)) and before <= set(keys)
    repeated = len(server.answered) - len(set(server.answered))
    assert repeated <= 3, "only what was in the air when it was killed may be asked again"
    assert [row for line in lines for row in line.get("rows", [])] == rows


def test_each_reason_to_refuse_a_task_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = """Task 4
Instruction: Name rivers.
Input: none
Output: The Rhine.

Task 5
Instruction: Draw a picture of a house at night.
Input: none
Output: Here it is.

Task 6
Instruction: What is the next number in the series? Explain the rule.
Input: 1, 2, 4
Output: 8, because each doubles.

Task 7
Instruction: Explain to a ten-year-old child why the bread dough rises.
Input: none
Output: Because of yeast.

Task 8
Instruction: Summarise the letter of a tenant in one line.

Task 9
Instruction: Erkläre bitte, warum der Himmel über dem Meer am Abend so rot ist.
Input: none
Output: Das Licht hat einen weiten Weg, und das Blau wird dabei gestreut.

Task 10
Instruction: Count the legs of the animals in this stable.
Input: three horses
Output: N/A

Task 11
Instruction: Sort these messages into urgent and calm ones.
Label: urgent
Input: The cellar is under water!
Label: calm
Input: No hurry at all with the invoice.

Task 12
Instruction: Tell me how long a journey by"""

    def speaker(asked: Asked) -> str:
        return thinker(asked) if server.answered else bad

    output = tmp_path / "mine.jsonl"
    with misbehaving(speaker, "cut_off") as server:
        main(options(server, output, 4, "--language", "en", "--concurrency", "1"))
    rows = rows_of(output)
    assert [row["output"] for row in rows[:2]] == ["urgent", "calm"]
    assert [row["input"] for row in rows[:2]] == ["The cellar is under water!", "No hurry at all with the invoice."]
    counts = card_of(output)["counts"]
    expected = {
        "too short": 1, "asks for more than text": 1, "repeated": 1, "too similar": 1, "unreadable": 1,
        "another language": 1, "no answer": 1, "cut off": 1, "of them classifications": 1,
    }  # fmt: skip
    assert {name: counts[name] for name in expected} == expected
    assert "1 too similar" in capsys.readouterr().out


def test_rows_that_were_changed_or_begun_otherwise_are_not_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "mine.jsonl"
    with misbehaving(thinker) as server:
        main(options(server, output, 5))
        line = refused(options(server, output, 9, "--temperature", "0.5"), capsys)
        assert "E7003 WorkChanged" in line and "temperature 1.0, and now it is 0.5" in line
        changed = output.read_text(encoding="utf-8").replace("Describe", "Describe well")
        output.write_text(changed, encoding="utf-8")
        assert "it was changed since" in refused(options(server, output, 9), capsys)
        assert output.read_text(encoding="utf-8") == changed
        other = tmp_path / "other.jsonl"
        other.write_text('{"instruction": "a", "output": "b"}\n')
        assert "has no journal" in refused(options(server, other, 9), capsys)
        assert other.read_text() == '{"instruction": "a", "output": "b"}\n'


def test_limits_are_kept_and_the_next_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "mine.jsonl"
    with misbehaving(thinker) as server:
        few = ["--max_tokens", "60", "--concurrency", "2"]
        line = refused(options(server, output, 500, *few, "--max_tokens_total", "4000"), capsys)
        assert "E7004 LimitReached" in line and "--max_tokens_total 4,000" in line
        card = card_of(output)
        assert 0 < card["tokens"]["in"] + card["tokens"]["out"] <= 4000 and 0 < card["rows"] < 500
        prices = ["--price_in", "1", "--price_out", "10", "--max_cost", "0.02"]
        line = refused(options(server, output, 500, *few, *prices), capsys)
        assert "--max_cost 0.02" in line and card_of(output)["rows"] > card["rows"]
        assert card["rows"] and 0.01 < card_of(output)["cost"] <= 0.02
    assert "--price_in" in refused(options(server, output, 500, "--max_cost", "5"), capsys)


def test_a_model_that_makes_nothing_of_use_is_given_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with misbehaving(lambda asked: "As a language model, I like hay.") as server:
        line = refused(options(server, tmp_path / "mine.jsonl", 5), capsys)
    assert "E7005 NothingUsable" in line and len(server.asked) < 60


def test_a_server_that_answers_nothing_ends_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with misbehaving(thinker, *["refused"] * 9) as server:
        line = refused(options(server, tmp_path / "mine.jsonl", 5, "--concurrency", "1"), capsys)
    assert "E7002 QuestionFailed: 5 questions in a row" in line and len(server.asked) == 5


def test_one_process_at_a_time_writes_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from alpaca.synthesis.journal import opened

    output = tmp_path / "mine.jsonl"
    with misbehaving(thinker) as server, opened(output):
        assert "E7007 SynthesisBusy" in refused(options(server, output, 5), capsys)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rows", "0"], "--rows is 0"),
        (["--shown", "30"], "28 seed tasks"),
        (["--language", "x"], "is no language"),
        (["--top_p", "0"], "--top_p is 0"),
        (["--concurrency", "0"], "--concurrency is 0"),
        (["--base_model", "weights/x"], "give one"),
        (["--seed_tasks", "nothing.jsonl"], "there is no such file"),
        (["--output", "mine.json"], "ends in .jsonl"),
    ],
)
def test_what_can_t_be_is_refused_before_anything_is_asked(
    tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with misbehaving(thinker) as server:
        assert message in refused([*options(server, tmp_path / "mine.jsonl", 5), *more], capsys)
    assert not server.asked


def test_seed_tasks_with_faults_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text('{"instruction": "Add.", "instances": []}\n{"instruction": "", "instances": [{}]}\n')
    with pytest.raises(SystemExit):
        main(["instruct", "--rows", "2", "--output", str(tmp_path / "o.jsonl"), "--seed_tasks", str(seeds)])
    error = capsys.readouterr().err
    assert "row 1: instances is no list" in error and "row 2: instruction is missing" in error
