"""The check as a whole and as a command: verdict, sections, exit status, files written, and what it refuses."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alpaca.data.check import Check, check_rows
from alpaca.data.scan import scan_rows
from alpaca.data.yardstick import open_yardstick
from tests.conftest import ROOT

GOOD = [
    {
        "instruction": f"What does herd {number} eat in winter?",
        "input": "",
        "output": f"Hay of field {number * 37}.",
    }
    for number in range(1, 7)
]


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def check(path: Path, *rows: Any, base: Path | None = None, cutoff_len: int = 512) -> Check:
    yardstick = open_yardstick(str(base), "auto", cutoff_len) if base else None
    return check_rows(scan_rows(str(write(path / "rows.jsonl", *rows))), yardstick, "no base")


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("BASE_MODEL", "NO_COLOR")}
    return kept | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | more


def command(folder: Path, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    """python -m alpaca.data in `folder`, which has no weights/."""
    return subprocess.run(
        [sys.executable, "-m", "alpaca.data", *map(str, arguments)],
        capture_output=True, text=True, timeout=180, cwd=folder, env=environment(**env),
    )  # fmt: skip


def on_a_terminal(folder: Path, *arguments: object, **env: str) -> str:
    """What the command writes on a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "alpaca.data", *map(str, arguments)],
        stdout=theirs, stderr=subprocess.STDOUT, cwd=folder, env=environment(TERM="xterm", COLUMNS="100", **env),
    )  # fmt: skip
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not part:
            break
        parts.append(part)
    os.close(ours)
    assert process.wait(timeout=180) == 0
    return b"".join(parts).decode()


# --- the verdict --------------------------------------------------------------------------------------------------
def test_good_rows_are_fit_and_nothing_is_odd(tmp_path: Path) -> None:
    found = check(tmp_path, *GOOD)
    assert found.unfit() == []
    assert found.verdict() == "FIT to train: 6 rows, and nothing odd was found."
    assert found.findings == []


def test_odd_rows_are_fit_but_named_in_the_verdict_the_commonest_first(tmp_path: Path) -> None:
    found = check(tmp_path, *GOOD, GOOD[0], GOOD[1], GOOD[2] | {"output": "N/A"})
    assert found.unfit() == []
    assert found.verdict().startswith("FIT to train, 9 rows, but look first at exact copies of an earlier row (2) and")
    assert "outputs such as N/A, None or nan (1)" in found.verdict()


def test_a_faulty_row_makes_the_file_unfit_and_is_named_with_its_field(tmp_path: Path) -> None:
    found = check(tmp_path, GOOD[0], {"instruction": "Hi"}, {"instruction": 5, "output": "x"})
    assert found.unfit() == ["2 of 3 rows can't be used"]
    (_, lines), *_ = found.sections()
    assert any("row 2: output: is missing" in line for line in lines)
    assert any("row 3: instruction: is a number (5)" in line for line in lines)


def test_one_fault_in_every_row_takes_one_line(tmp_path: Path) -> None:
    (_, lines), *_ = check(tmp_path, *({"request": "a", "answer": "b"} for _ in range(500))).sections()
    assert len([line for line in lines if "is missing" in line]) == 2
    assert any("rows 1, 2, 3, 4, 5, 6, 7, 8 and 492 more" in line for line in lines)


@pytest.mark.parametrize("rows", [[], [GOOD[0] | {"output": ""}]])
def test_a_file_with_nothing_to_learn_is_unfit(tmp_path: Path, rows: list[Any]) -> None:
    assert check(tmp_path, *rows).unfit()


def test_a_file_in_which_nothing_fits_is_unfit(tmp_path: Path, tiny_base: Path) -> None:
    long = [row | {"instruction": row["instruction"] * 20} for row in GOOD]
    assert check(tmp_path, *long, base=tiny_base, cutoff_len=32).unfit() == ["no row fits in cutoff_len 32"]


def test_rows_that_are_cut_or_left_out_are_warned_of(tmp_path: Path, tiny_base: Path) -> None:
    cut, out = GOOD[0] | {"output": "hay " * 200}, GOOD[1] | {"instruction": "hay " * 200}
    found = check(tmp_path, GOOD[2], cut, out, base=tiny_base, cutoff_len=128)
    seen = {finding.kind: list(finding.seen) for finding in found.warnings}
    assert (seen["truncated"], seen["too_long"]) == ([2], [3])


def test_row_numbers_are_the_lines_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"\n{json.dumps(GOOD[0])}\n\n{json.dumps(GOOD[1] | {'output': 'nan'})}\n", encoding="utf-8")
    (finding,) = check_rows(scan_rows(str(path)), None).findings
    assert list(finding.seen) == [4]


def test_a_fault_in_a_later_turn_is_seen(tmp_path: Path) -> None:
    said = [("user", "Hi"), ("assistant", "Hello."), ("user", "Bye"), ("assistant", "Goodbye.</s>")]
    found = check(tmp_path, {"messages": [{"role": role, "content": text} for role, text in said]})
    assert [finding.kind for finding in found.findings] == ["marker"]


def test_what_a_row_holds_can_not_steer_the_terminal(tmp_path: Path) -> None:
    bad = {"instruction": "[bold]Hi", "output": "see http://x.y/\x1b]0;owned\x07 \u202e[red]", "\x1b[2J": 1}
    done = command(tmp_path, write(tmp_path / "rows.jsonl", *GOOD, bad))
    assert done.returncode == 0, done.stderr
    assert not {"\x1b", "\x07", "\u202e"} & set(done.stdout)


# --- the command --------------------------------------------------------------------------------------------------
def test_the_status_says_whether_the_file_is_fit(tmp_path: Path) -> None:
    fit = command(tmp_path, write(tmp_path / "fit.jsonl", *GOOD))
    assert (fit.returncode, fit.stderr) == (0, "")
    assert fit.stdout.startswith(f"{tmp_path / 'fit.jsonl'}: FIT to train: 6 rows")
    unfit = command(tmp_path, write(tmp_path / "unfit.jsonl", *GOOD, {"instruction": "Hi"}))
    assert (unfit.returncode, unfit.stderr) == (1, "")
    assert "NOT FIT to train: 1 of 7 rows" in unfit.stdout.splitlines()[0]
    empty = command(tmp_path, write(tmp_path / "empty.jsonl"))
    assert (empty.returncode, empty.stderr) == (1, "")
    assert "it holds no rows" in empty.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing.jsonl"], "E2001 DataNotFound"),
        (["folder"], "E2004 UnsupportedFile"),
        (["noise.bin"], "E2004 UnsupportedFile"),
        (["noise.jsonl"], "E2005 UnreadableFile"),
        (["rows.jsonl", "--base_model", "no-such-base"], "E3001 BaseNotFound"),
        (["rows.jsonl", "--preview", "2"], "E3001 BaseNotFound"),
        (["rows.jsonl", "--preview", "0"], "--preview is 0"),
        (["rows.jsonl", "--preview", "1", "--json", "a.json"], "--preview only shows rows"),
        (["rows.jsonl", "--json", "a.txt"], "ends in .json"),
        (["rows.jsonl", "--plot", "a.pdf"], "ends in .png"),
        (["rows.jsonl", "--plot", "nowhere/a.png"], "there is no folder nowhere"),
        (["rows.jsonl", "--fix", "a.json"], "ends in .jsonl"),
        (["rows.jsonl", "--fix", "rows.jsonl"], "the file of rows itself"),
        (["rows.jsonl", "--fix", "noise.jsonl"], "is not overwritten"),
        (["rows.json", "--json", "rows.json"], "the file of rows itself"),
        (["rows.jsonl", "--sniff"], "unrecognized arguments"),
    ],
)
def test_a_mistake_is_said_with_status_2_and_changes_nothing(tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("noise.bin", "noise.jsonl"):
        (tmp_path / name).write_bytes(bytes(range(255, 0, -1)) * 20)
    write(tmp_path / "rows.jsonl", *GOOD)
    (tmp_path / "rows.json").write_text(json.dumps(GOOD), encoding="utf-8")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    done = command(tmp_path, *arguments)
    assert done.returncode == 2, done.stdout
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_without_a_base_lengths_are_characters_and_the_output_says_so(tmp_path: Path) -> None:
    done = command(tmp_path, write(tmp_path / "rows.jsonl", *GOOD))
    assert "in characters (no tokens: there is no base in weights/" in done.stdout


def test_everything_found_is_in_the_json_and_the_picture_is_drawn(tmp_path: Path, tiny_base: Path) -> None:
    rows = [*GOOD, GOOD[0], GOOD[3] | {"input": "<noinput>"}, GOOD[4] | {"output": "hay " * 400}]
    source = write(tmp_path / "rows.jsonl", *rows)
    done = command(
        tmp_path, source, "--base_model", tiny_base, "--cutoff_len", 256, "--json", "a.json", "--plot", "a.png"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert report["fit"] is True
    assert report["rows"] == {"read": 9, "trainable": 9, "faulty": 0, "shapes": {"instruction": 9}, "extra_fields": {}}
    assert report["duplicates"]["exact"] == [[1, 7], [4, 8]]
    kinds = {finding["kind"]: [seen["row"] for seen in finding["rows"]] for finding in report["findings"]}
    assert kinds["exact_copy"] == [7, 8]
    assert kinds["no_input"] == [8]
    assert kinds["truncated"] == report["lengths"]["truncated"] == [9]
    assert (report["lengths"]["unit"], report["lengths"]["cutoff_len"]) == ("tokens", 256)
    assert sum(part["rows"] for part in report["lengths"]["histogram"]) == 9
    assert sum(language["count"] for language in report["languages"]) == 9
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_mended_file_is_written_and_its_fitness_is_the_status(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", *GOOD, GOOD[0], {"instruction": "Hi"}, GOOD[1] | {"output": "N/A"})
    before = source.read_bytes()
    done = command(tmp_path, source, "--fix", "mended.jsonl", "--json", "a.json")
    assert done.returncode == 0, done.stderr
    assert "NOT FIT" in done.stdout.splitlines()[1]
    assert "dropped: exact copy of an earlier row, as mended: 1 row (7)" in done.stdout
    report = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert report["fix"]["rows"] == 6
    assert {kind: rows for kind, rows in report["fix"]["done"].items() if rows} == {
        "faulty": [8], "exact_duplicate": [7], "placeholder_output": [9],
    }  # fmt: skip
    assert source.read_bytes() == before
    again = command(tmp_path, "mended.jsonl")
    assert again.stdout.startswith("mended.jsonl: FIT to train: 6 rows, and nothing odd was found.")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "mended.jsonl", "rows.jsonl"]


def test_where_no_row_is_left_nothing_is_written(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", GOOD[0] | {"output": "N/A"})
    done = command(tmp_path, source, "--fix", "mended.jsonl")
    assert done.returncode == 1
    assert "no row is left" in done.stdout
    assert not (tmp_path / "mended.jsonl").exists()


def test_the_preview_is_html_where_nobody_sees_it_and_a_file_where_asked(tmp_path: Path, tiny_base: Path) -> None:
    source = write(tmp_path / "rows.jsonl", *GOOD)
    piped = command(tmp_path, source, "--base_model", tiny_base, "--preview", 2)
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout.startswith("<!doctype html>") and piped.stdout.endswith("</html>\n")
    assert piped.stdout.count("<h2>") == 2
    written = command(tmp_path, source, "--base_model", tiny_base, "--preview", 2, "--html", "look.html")
    assert written.stdout == "wrote look.html: 2 rows\n"
    assert (tmp_path / "look.html").read_text(encoding="utf-8") == piped.stdout


def test_the_preview_on_a_terminal_is_coloured_or_bracketed(tmp_path: Path, tiny_base: Path) -> None:
    source = write(tmp_path / "rows.jsonl", *GOOD)
    seen = on_a_terminal(tmp_path, source, "--base_model", tiny_base, "--preview", 1)
    assert "\x1b[1;32mHay of field 37.<|im_end|>" in seen
    plain = on_a_terminal(tmp_path, source, "--base_model", tiny_base, "--preview", 1, NO_COLOR="1")
    assert "⟦Hay of field 37.<|im_end|>⟧" in plain
    assert "\x1b[1;32m" not in plain


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['x', '--help']\n"
        "try:\n    import runpy; runpy.run_module('alpaca.data', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "heavy = {'numpy', 'rich', 'matplotlib', 'torch', 'transformers'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment())
    assert done.returncode == 0, done.stderr
