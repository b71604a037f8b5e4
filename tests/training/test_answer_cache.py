"""The base's answers of earlier runs: used as they were written, or not at all; no trouble with them stops a run."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from alpaca.training import answer_cache
from alpaca.training.answer_cache import OwnAnswer, add_answers, cache_file, read_answers

SAID = {"a": OwnAnswer("hay – «gras»\n", False), "b": OwnAnswer("", False), "c": OwnAnswer("and and", True)}


def read(path: Path) -> tuple[dict[str, OwnAnswer], list[str]]:
    lines: list[str] = []
    return read_answers(path, lines.append), lines


def test_what_was_kept_is_read_and_more_is_added(tmp_path: Path) -> None:
    path = tmp_path / "new" / "answers.jsonl"
    assert read(path) == ({}, [])
    lines: list[str] = []
    add_answers(path, {"a": SAID["a"]}, lines.append)
    add_answers(path, {"a": OwnAnswer("other", False), "b": SAID["b"], "c": SAID["c"]}, lines.append)
    assert read(path) == (SAID | {"a": OwnAnswer("other", False)}, []) and lines == []
    assert os.listdir(path.parent) == [path.name]


def test_another_base_precision_template_or_length_has_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALPACA_CACHE", str(tmp_path))
    plain = {"base": "a", "precision": "bf16", "template": {"kind": "chat", "x": "1"}, "max_tokens": 200}
    assert cache_file(**plain) == cache_file(**dict(reversed(plain.items())))
    changes: list[dict[str, object]] = [
        {"base": "b"}, {"precision": "fp32"}, {"template": {"kind": "chat", "x": "2"}}, {"max_tokens": 100}
    ]  # fmt: skip
    files = {cache_file(**(plain | change)) for change in ({}, *changes)}
    assert len(files) == 5 and {file.parent for file in files} == {tmp_path / "own_answers"}


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "one letter": lambda content: content.replace(b"and and", b"and end"),
    "cut": lambda content: content[:-20],
    "zeros": lambda content: content[: content.index(b"and and")] + b"\0" * 60,
    "no object": lambda content: content[: content.rindex(b'{"prompt"')] + b"[1]\n",
    "no check": lambda content: content[: content.rindex(b'{"prompt"')] + b'{"prompt": "c", "answer": "x"}\n',
    "of another kind": lambda content: content[: content.rindex(b'{"prompt"')] + b'{"check": [[[]]]}\n',
    "nested": lambda content: content[: content.rindex(b'{"prompt"')] + b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_line_is_left_out_and_said_and_is_whole_again_once_it_is_made_again(
    tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "answers.jsonl"
    add_answers(path, SAID, print)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    found, lines = read(path)
    assert found == {"a": SAID["a"], "b": SAID["b"]}
    assert len(lines) == 1 and "1 of the 3 answers" in lines[0] and str(path) in lines[0]
    add_answers(path, {"c": SAID["c"]}, print)
    assert read(path) == (SAID, [])


def test_a_folder_that_can_t_be_written_or_read_costs_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    lines: list[str] = []
    add_answers(tmp_path / "file" / "answers.jsonl", SAID, lines.append)
    assert len(lines) == 1 and "are not kept for the next run (" in lines[0]
    (tmp_path / "folder").mkdir()
    found, lines = read(tmp_path / "folder")
    assert found == {} and len(lines) == 1 and "they are made again" in lines[0]


def test_a_disk_that_fills_up_leaves_what_was_there(tmp_path: Path) -> None:
    """The kernel refuses a file beyond a size, as it does on a full disk."""
    path = tmp_path / "answers.jsonl"
    add_answers(path, SAID, print)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    lines: list[str] = []
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        add_answers(path, {"d": OwnAnswer("x" * 100_000, False)}, lines.append)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(lines) == 1 and os.strerror(errno.EFBIG) in lines[0]
    assert read(path) == (SAID, []) and os.listdir(tmp_path) == [path.name]


def test_a_file_that_grows_too_large_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "answers.jsonl"
    add_answers(path, SAID, print)
    monkeypatch.setattr(answer_cache, "MOST_BYTES", path.stat().st_size + 10)
    add_answers(path, {"d": OwnAnswer("x", False)}, print)
    assert read(path)[0] == {"d": OwnAnswer("x", False)}
    assert [json.loads(line)["prompt"] for line in path.read_text().splitlines()] == ["d"]
