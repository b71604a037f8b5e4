"""How a command ends: on a mistake, in a Python without the project's packages, and where it is asked to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

BARE = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


@pytest.mark.parametrize(
    "command",
    [[str(ROOT / "finetune.py"), "--data_path", "two words.jsonl"], ["-m", "alpaca.data", "data/alpacas.jsonl"]],
    ids=["a file", "a module"],
)
def test_a_python_without_the_packages_says_which_one_has_them(command: list[str]) -> None:
    """-S leaves out site-packages."""
    done = subprocess.run([sys.executable, "-S", *command], capture_output=True, text=True, env=BARE, cwd=ROOT)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"error: this Python ({sys.executable}) has no " in done.stderr
    if (ROOT / ".venv" / "bin" / "python").exists():
        given = " ".join(command).replace("two words.jsonl", "'two words.jsonl'")
        assert done.stderr.strip().endswith(f"Run: .venv/bin/python {given}")
    else:
        assert done.stderr.strip().endswith("Set the project up first: make demo")


ASKED_TO_END = """
import os, signal, sys, tempfile
from alpaca.errors import end_as_interrupted, exit_on_error

@exit_on_error
def main():
    end_as_interrupted()
    with tempfile.TemporaryDirectory(dir=sys.argv[1]):
        os.kill(os.getpid(), signal.SIGTERM)
main()
"""


def test_a_command_that_is_asked_to_end_clears_up_and_says_so_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ASKED_TO_END, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr.strip() == "ended by SIGTERM"
    assert not list(tmp_path.iterdir())
