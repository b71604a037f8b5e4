"""After the training comes the report; should it fail, the finished adapter stays as it is."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from alpaca.adapter.archive import pack
from alpaca.paths import this_python
from alpaca.training.plan import make_plan
from alpaca.training.result import Finetuned
from alpaca.training.run import report
from tests.training.runs import leftovers, make_rows, settings, train, tree, write_rows


@pytest.fixture(scope="module")
def reported(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("reported")
    rows = write_rows(folder / "rows.jsonl", make_rows(24))
    lines = train(settings(tiny_base, rows, folder / "out", report_budget=0.05, replay_ratio=0.1))
    return folder / "out", lines


def test_a_run_ends_with_its_report_in_the_adapter_s_folder(reported: tuple[Path, list[str]]) -> None:
    folder, lines = reported
    assert any(line.startswith("report      up to 1:00 after the training") for line in lines)
    names = {path.name for path in (folder / "report").iterdir()}
    assert {"training.json", "report.json"} <= names and any(name.endswith(".html") for name in names)
    assert json.loads((folder / "report" / "training.json").read_text())["history"]
    done = next(number for number, line in enumerate(lines) if line.startswith("done"))
    assert any(line.startswith("report      ") for line in lines[done:])
    assert not any(line.startswith("warning") for line in lines)
    assert leftovers(folder) == []


def test_the_archive_takes_the_report_along(reported: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, _ = reported
    packed = set(zipfile.ZipFile(pack(folder, tmp_path / "a.zip")).namelist())
    there = {str(path.relative_to(folder)) for path in (folder / "report").iterdir()}
    assert there | {"adapter_model.safetensors", "alpaca.json"} <= packed
    assert not [name for name in packed if "checkpoint" in name]


def test_rows_with_columns_of_other_names_are_read_again(tiny_base: Path, tmp_path: Path) -> None:
    given = [{"Frage": row["instruction"], "Antwort": row["output"]} for row in make_rows(24)]
    rows = write_rows(tmp_path / "fragen.jsonl", given)
    columns = "Frage=instruction,Antwort=output"
    lines = train(settings(tiny_base, rows, tmp_path / "out", columns=columns, report_budget=0.05))
    assert not any(line.startswith("warning") for line in lines)
    report = json.loads((tmp_path / "out" / "report" / "report.json").read_text())
    assert report["domain"]["rows"] == 4


def test_without_a_budget_there_is_none(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    lines = train(settings(tiny_base, rows, tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out" / "report").iterdir()] == ["training.json"]
    assert not any(line.startswith("report") for line in lines)


def test_a_report_that_fails_is_said_and_the_adapter_stays_as_it_is(
    reported: tuple[Path, list[str]], tiny_mha_base: Path, rows: Path, tmp_path: Path
) -> None:
    """It fails because the plan names another base than the adapter was trained on."""
    folder, _ = reported
    before = tree(folder)
    plan = make_plan(settings(tiny_mha_base, rows, tmp_path / "out"), lambda line: None)
    lines: list[str] = []
    report(plan, Finetuned(folder, None, None, 1, 1.0), lines.append)
    assert any(line.startswith("warning     there is no report: E4003 WrongBase: ") for line in lines)
    assert lines[-1].endswith(
        f"the adapter is complete; for a report: {this_python()} -m alpaca.evaluation --adapter {folder}"
    )
    assert tree(folder) == before
