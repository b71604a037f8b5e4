"""What a person's path means, and what to type for the Python that runs this."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from alpaca.compare.__main__ import parse as compare
from alpaca.convert.__main__ import parser as convert
from alpaca.data.output_file import output_path
from alpaca.data.reader import read_examples
from alpaca.evaluation.__main__ import parser as evaluation
from alpaca.paths import as_written, this_python
from alpaca.training.cli import read_settings
from alpaca.training.config import FinetuneConfig


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home, seen from a folder in which some files have names that begin with ~."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("DATA_PATH", "BASE_MODEL", "MICRO_BATCH_SIZE"):
        monkeypatch.delenv(name, raising=False)
    Path("~root").write_text("a file with the name of a user in it")
    Path("~rows.jsonl").write_text('{"instruction": "Say hay.", "output": "hay"}\n')
    Path("~").mkdir()
    return tmp_path / "home"


def test_a_tilde_is_the_home_and_a_file_whose_name_begins_with_one_is_that_file(home: Path) -> None:
    assert as_written("~") == home
    assert as_written("~/rows.jsonl") == home / "rows.jsonl"
    for name in ("~root", "~rows.jsonl", "~no-such-user/rows.jsonl", "rows~.jsonl", "a/~/b", "/a/b", ""):
        assert as_written(name) == Path(name)
    assert read_examples("~rows.jsonl").report.kept == 1


def test_every_path_of_a_fine_tune_may_begin_with_the_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an option, in a YAML file that is itself named so, and in the environment."""
    home.mkdir()
    names = ["base_model", "data_path", "output_dir", "prompt_template_name", "replay_path", "resume_from_checkpoint"]
    (home / "c.yaml").write_text("".join(f"{name}: ~/{name}\n" for name in names))
    wanted = FinetuneConfig(**{name: str(home / name) for name in names})  # type: ignore[arg-type]
    assert read_settings(["--config", "~/c.yaml"]) == wanted
    assert read_settings([f"--{name}=~/{name}" for name in names]) == wanted
    monkeypatch.setenv("DATA_PATH", "~/rows.jsonl")
    assert read_settings([]).data_path == str(home / "rows.jsonl")


def test_so_may_those_of_the_other_commands(home: Path) -> None:
    options = convert().parse_args(["--input_dir", "~/in", "--output_dir", "~/out"])
    assert (options.input_dir, options.output_dir) == (home / "in", home / "out")
    options = evaluation().parse_args(["--adapter", "~/a", "--general_path", "~/g", "--probes_path", "~/p"])
    assert (options.adapter, options.general_path, options.probes_path) == (home / "a", home / "g", home / "p")
    assert compare(["--prompts", "~/q.txt"]).prompts == home / "q.txt"
    home.mkdir()
    assert output_path("--fix", "~/better.jsonl", ".jsonl", "~/rows.jsonl") == home / "better.jsonl"


def test_the_next_command_names_the_python_that_runs_this(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "some where" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    assert this_python() == f"'{python}'"  # quoted for the space
    monkeypatch.chdir(python.parent)
    monkeypatch.setenv("PATH", "/nowhere")
    assert this_python() == "./python"
    monkeypatch.chdir(tmp_path / "some where")
    assert this_python() == "bin/python"
    monkeypatch.setenv("PATH", str(python.parent))
    assert this_python() == "python"
