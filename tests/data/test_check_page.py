"""docs/data.md shows what the command really writes, and names every kind of odd row."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from alpaca.data.suspicions import SIGNS
from tests.conftest import ROOT
from tests.data.test_check import environment

PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)\n```$", PAGE, re.DOTALL | re.MULTILINE)
OUTPUTS = [text for language, text in BLOCKS if not language]


def output_of(folder: Path, *arguments: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "alpaca.data", *arguments],
        capture_output=True, text=True, timeout=180, cwd=folder, env=environment(**env),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return re.sub(r"\S*python(?= (finetune|-m))", "python", done.stdout.rstrip("\n"))  # as everyone would type it


def test_every_kind_of_odd_row_is_explained_with_what_fix_does() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| ([\w ]*) ?\|$", PAGE, re.MULTILINE))
    assert list(rows) == [sign.kind for sign in SIGNS]
    assert {kind for kind, fix in rows.items() if fix} == {sign.kind for sign in SIGNS if sign.mended}


def test_the_example_of_mending_is_real(tmp_path: Path) -> None:
    (rows,) = [text for language, text in BLOCKS if language == "jsonl"]
    (tmp_path / "mine.jsonl").write_text(rows, encoding="utf-8")
    assert output_of(tmp_path, "mine.jsonl", "--fix", "better.jsonl") == OUTPUTS[1]


@pytest.mark.real
def test_the_look_at_the_shipped_set_is_real(smollm2: Path) -> None:
    assert output_of(ROOT, "data/alpacas.jsonl", BASE_MODEL=str(smollm2.relative_to(ROOT))) == OUTPUTS[0]
