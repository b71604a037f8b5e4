"""Answers side by side, from the base loaded once."""

from __future__ import annotations

import html
import json
import re
import sys
from pathlib import Path

import pytest

from alpaca.compare import __main__ as compare
from alpaca.compare.comparison import Comparison
from alpaca.errors import AlpacaError, DataNotFound, UnreadableFile, UnsupportedFile
from tests.serving.peft_adapters import make_adapter


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, arguments)])
    try:
        compare.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_each_prompt_is_answered_by_each(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = make_adapter(tiny_base, tmp_path / "mine", template="chat")
    options = (
        "--base_model",
        tiny_base,
        "--precision",
        "fp32",
        "--max_tokens",
        12,
        "--prompt",
        "hay",
        "--prompt",
        "grass",
    )
    assert run(monkeypatch, "--adapters", "base", adapter, "base", *options) == 0
    shown = capsys.readouterr()
    first, second = shown.out.split("=== ")[1:]
    for part, prompt in ((first, "hay"), (second, "grass")):
        title, *answers = part.strip().split("\n\n--- ")
        names = [answer.partition("\n")[0] for answer in answers]
        texts = [answer.partition("\n")[2].strip() for answer in answers]
        assert (title, names) == (prompt, ["base", str(adapter), "base"])
        assert texts[0] == texts[2] != texts[1]
    assert shown.err.count("base: ") == 1
    assert "adapter: none" in shown.err and "rank 4" in shown.err


def test_a_wrong_name_is_told_before_anything_is_loaded(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "--adapters", "base", "lora-nope", "--prompt", "hay", "--base_model", tiny_base) == 2
    said = capsys.readouterr().err
    assert "E4001 AdapterNotFound: no adapter 'lora-nope'. There " in said and "base:" not in said


def test_several_adapters_may_make_one_answer(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names are whatever the one who types them may name; a folder whose path holds a + or a colon is that folder."""
    for seed, name in enumerate(("mine", "c++:2"), 1):
        make_adapter(tiny_base, tmp_path / name, seed=seed)
    monkeypatch.chdir(tmp_path)
    both = '[{"name": "c++:2"}, {"name": "mine"}]'
    asked = ["mine", "mine:1", "c++:2", '[{"name": "c++:2"}]', both]
    options = ("--base_model", tiny_base, "--precision", "fp32", "--max_tokens", 12, "--prompt", "hay")
    assert run(monkeypatch, "--adapters", *asked, *options) == 0
    answers = [part.partition("\n")[2].strip() for part in capsys.readouterr().out.split("\n--- ")[1:]]
    assert answers[0] == answers[1] != answers[2] == answers[3] != answers[4] != answers[0]
    for wrong, says in (("mine+nowhere", "E4001 AdapterNotFound: no adapter 'nowhere'"), ("mine+./mine", "E1006")):
        assert run(monkeypatch, "--adapters", wrong, *options) == 2
        assert says in (said := capsys.readouterr().err) and "base:" not in said


def test_prompts_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\ufeff早安\n\nhay?\n", encoding="utf-8")
    assert compare.read_prompts(tmp_path / "p.txt") == [("早安", ""), ("hay?", "")]
    (tmp_path / "p.jsonl").write_text('{"instruction": "a", "input": "b"}\n{"instruction": "c"}\n')
    assert compare.read_prompts(tmp_path / "p.jsonl") == [("a", "b"), ("c", "")]


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [("none", None, DataNotFound), ("a.jsonl", b"[]", UnsupportedFile), ("a.txt", b"\xff", UnreadableFile)],
)
def test_a_file_that_holds_no_prompts_is_named(
    tmp_path: Path, name: str, content: bytes | None, error: type[AlpacaError]
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=name):
        compare.read_prompts(tmp_path / name)


def test_nothing_to_ask_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch) == 2
    assert "E1001" in capsys.readouterr().err


def test_a_terminal_gets_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    Comparison(["base", "mine"], [("hay [bold]?", "")], [["yes [red]", "no 早"]]).show()
    out = capsys.readouterr().out
    assert "hay [bold]?" in out and "yes [red]" in out and "no 早" in out and "│" in out


def test_answers_are_written_as_json_and_as_a_page(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, answers = tmp_path / "a.html", tmp_path / "a.json"
    options = ("--base_model", tiny_base, "--precision", "fp32", "--max_tokens", 8, "--prompt", "<b>hay & 早</b>")
    assert run(monkeypatch, *options, "--html", page, "--json", answers) == 0
    [row] = json.loads(answers.read_text(encoding="utf-8"))
    assert row["prompt"] == "<b>hay & 早</b>" and [answer["name"] for answer in row["answers"]] == ["base"]
    text = page.read_text(encoding="utf-8")
    assert "&lt;b&gt;hay &amp; 早&lt;/b&gt;" in text and "<b>" not in text and "<script" not in text
    assert html.escape(row["answers"][0]["text"]) in text


def test_an_answer_can_neither_run_hide_nor_turn_the_page_around() -> None:
    bad = "<img src=x onerror=alert(1)> \u202eevil\u202c \u200b \x1b[31m \x00 می\u200cخواهم \ud800"
    page = Comparison([bad, "b"], [(bad, bad)], [[bad, bad]]).as_html()
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b\x00\x1b]|<img", page)
    assert "\\u202eevil" in page and "␛[31m" in page and "می\u200cخواهم" in page
    page.encode("utf-8")


def test_an_answer_can_not_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    bad = "\x1b]0;title\x07 \u202eevil"
    Comparison([bad], [(bad, "")], [[bad]]).show()
    out = capsys.readouterr().out
    assert "\x1b]" not in out and "\u202e" not in out and out.count("␛]0;title") == 3


def test_a_server_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--server", "http://127.0.0.1:9", "--prompt", "hay") == 2
    assert "E1103" in (shown := capsys.readouterr().err) and "127.0.0.1:9" in shown
