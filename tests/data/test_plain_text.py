"""Plain text files: passages as rows, sections to hold out, and all of it trained once."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpaca.data.check import check_rows
from alpaca.data.plain_text import LONGEST, in_sections, joined, passages
from alpaca.data.reader import read_examples
from alpaca.data.scan import scan_rows
from alpaca.data.split import split
from alpaca.errors import NoRowsLeft, UnreadableFile, UnsupportedFile
from alpaca.prompts.encode import encode_examples
from alpaca.prompts.example import Example
from alpaca.prompts.find import load_template
from tests.conftest import make_tokenizer

TEXTS = st.text(st.sampled_from("ab .\n\r\t。é<"), max_size=300)
PARAGRAPHS = [f"task {number}: the alpaca eats hay. The alpaca eats grass in the field." for number in range(60)]


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return str(path)


def as_examples(text: str) -> list[Example]:
    return [Example.text(row["text"], row=line, place=row.place) for line, row in passages(text)]


def one_blank_line(text: str) -> str:
    """What the documentation promises: one kind of line end, one blank line between paragraphs, none at the edges."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            paragraphs[-1].append(line)
        elif paragraphs[-1]:
            paragraphs.append([])
    return "\n\n".join("\n".join(lines) for lines in paragraphs if lines)


@given(TEXTS)
def test_the_passages_are_the_whole_text(text: str) -> None:
    found = as_examples(text)
    for examples in (found, in_sections(found)):
        assert "".join(part.place.joint + (part.turns[0].output or "") for part in examples if part.place) == (
            one_blank_line(text)
        )
    assert [part.place.ends for part in found if part.place] == [False] * (len(found) - 1) + [True] * bool(found)
    assert [part.turns[0].output for part in joined(found)] == [one_blank_line(text)] * bool(found)
    assert len({part.row for part in found}) == len(found)


@settings(deadline=None, max_examples=30)
@given(TEXTS, st.integers(2, 40), st.booleans())
def test_every_token_of_a_file_is_trained_once(text: str, cutoff_len: int, add_bos: bool) -> None:
    tokenizer = make_tokenizer(add_bos=add_bos)
    runs = joined(as_examples(text))
    found = encode_examples(tokenizer, load_template("chat", tokenizer), runs, cutoff_len=cutoff_len).examples
    for before, piece in pairwise(found):
        assert piece.input_ids[0] == before.input_ids[-1]
    assert all(piece.trained == [(1, len(piece))] and len(piece) <= cutoff_len for piece in found)
    ids = [token for number, piece in enumerate(found) for token in piece.input_ids[number > 0 :]]
    whole = tokenizer.encode(one_blank_line(text), add_special_tokens=False) if runs else []
    assert ids == ([tokenizer.bos_token_id] * add_bos + [*whole, tokenizer.eos_token_id] if runs else [])


def test_pieces_end_with_paragraphs_else_with_sentences() -> None:
    tokenizer = make_tokenizer()
    template = load_template("chat", tokenizer)
    decode = tokenizer.decode
    text = "\n\n".join(PARAGRAPHS)
    found = encode_examples(tokenizer, template, [Example.text(text)], cutoff_len=100).examples
    assert len(found) > 10
    assert all(decode(piece.input_ids).endswith(".\n\n") for piece in found[:-1])
    assert all(decode(piece.input_ids[1:]).startswith("task ") for piece in found[1:])
    in_one = encode_examples(tokenizer, template, [Example.text(text.replace("\n\n", " "))], cutoff_len=100).examples
    assert all(decode(piece.input_ids).rstrip().endswith(".") for piece in in_one[:-1])
    no_ends = encode_examples(tokenizer, template, [Example.text("hay" * 400)], cutoff_len=100).examples
    assert all(len(piece) == 100 for piece in no_ends[:-1])


def test_sections_are_held_out_and_the_rest_is_trained_to_its_last_token(tmp_path: Path) -> None:
    dataset = read_examples(write(tmp_path / "a.txt", "\n\n".join(PARAGRAPHS)))
    assert dataset.report.rows_read == len(PARAGRAPHS) and dataset.examples[7].row == 15
    assert f"{len(PARAGRAPHS)} rows of raw text: every token is trained, without a template" in dataset.report.lines()
    parts = split(dataset.examples, 0.2, 3)
    assert "sections to train on" in parts.note
    assert all(
        (section.turns[0].output or "").count("\n\n") == section.place.last - section.place.first > 0
        for section in parts.validation
        if section.place
    )
    tokenizer = make_tokenizer()
    runs = joined(parts.train)
    assert len(runs) < len(parts.train)
    held = "\n\n".join(section.turns[0].output or "" for section in parts.validation)
    trained = "\n\n".join(run.turns[0].output or "" for run in runs)
    assert all((paragraph in held) != (paragraph in trained) for paragraph in PARAGRAPHS)
    found = encode_examples(tokenizer, load_template("chat", tokenizer), runs, cutoff_len=64)
    eos = [piece for piece in found.examples if tokenizer.eos_token_id in piece.input_ids]
    assert len(eos) == sum(bool(run.place and run.place.ends) for run in runs) <= 1


def test_bom_crlf_and_lines_in_place_of_paragraphs(tmp_path: Path) -> None:
    lines = [f"line {number} has some words in it." for number in range(300)]
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    found = read_examples(path).examples
    assert 8 < len(found) < 20
    assert all(len(example.turns[0].output or "") <= LONGEST for example in found)
    assert [example.turns[0].output for example in joined(found)] == ["\n".join(lines)]
    assert split(found, None, 1).validation


@pytest.mark.parametrize("text", ["", "\n \r\n\t\n", b"\xef\xbb\xbf"], ids=["empty", "blank", "only a mark"])
def test_a_file_without_text_has_no_rows(text: str | bytes, tmp_path: Path) -> None:
    with pytest.raises(NoRowsLeft, match=r"a\.txt: holds no rows"):
        read_examples(write(tmp_path / "a.txt", text))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("Grüße\n\nan Jürgen".encode("latin-1"), r"is not UTF-8: byte 0xfc at offset 2 \(line 1\)"),
        ("hay\nGrüße".encode("utf-16"), "is UTF-16; convert it: iconv -f UTF-16"),
        ("hay\ngrass".encode("utf-16-le"), r"is no text: it holds a NUL byte \(line 1\). If it is UTF-16: .*iconv"),
        (b"\x7fELF\x02\x01\x01\x00\x00", r"is no text: it holds a NUL byte"),
        ("hay é".encode()[:-1], "ends inside a character"),
    ],
)
def test_what_is_no_text_is_refused_with_its_place(content: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match=said):
        read_examples(write(tmp_path / "a.txt", content))


def test_rows_under_the_name_of_a_text_are_rows(tmp_path: Path) -> None:
    row = '{"instruction": "a", "output": "b"}'
    for text in (row, f"[\n {row}\n]"):
        assert read_examples(write(tmp_path / "a.txt", text)).examples == [Example.single("a", "", "b", row=1)]
    for text in ("[1] A footnote.", "{note} Hay"):
        assert read_examples(write(tmp_path / "a.txt", text)).examples[0].raw


def test_a_folder_of_that_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(UnsupportedFile, match="is a folder"):
        read_examples(str(tmp_path / "a.txt"))


def test_a_long_line_is_one_row_and_is_cut_where_sentences_end(tmp_path: Path) -> None:
    sentence = "The alpaca eats hay in the field. "
    found = read_examples(write(tmp_path / "a.txt", sentence * 8000)).examples
    assert len(found) == 1 and not split(found, None, 1).validation
    tokenizer = make_tokenizer()
    encoded = encode_examples(tokenizer, load_template("chat", tokenizer), joined(found), cutoff_len=1024).examples
    assert sum(len(piece) - 1 for piece in encoded) + 1 == len(tokenizer.encode(sentence * 8000)) + 1
    assert all(tokenizer.decode(piece.input_ids).rstrip().endswith(".") for piece in encoded[:-1])


def test_the_check_of_a_text_speaks_of_passages(tmp_path: Path) -> None:
    long = "The alpaca stays in the field until the evening comes, and it eats all the hay that there is for it."
    text = f"* * *\n\n{long}\n\nSie sagte: Das Heu ist für die Tiere und nicht für dich,\n\n* * *\n\n{long}\n\nN/A"
    check = check_rows(scan_rows(write(tmp_path / "a.txt", text)), None)
    assert not check.unfit() and check.trainable == 6
    assert check.duplicates.exact == [[3, 9]]
    assert {finding.kind for finding in check.findings} == {"exact_copy"}  # text without a question repeats none
    assert check.languages["German"] == [5]
    assert "--fix" not in check.advice() + "".join(line for _, lines in check.sections() for line in lines)
    assert "Languages" in dict(check.sections())


def test_a_fix_of_a_text_is_refused(tmp_path: Path) -> None:
    from alpaca.data.__main__ import main

    path = write(tmp_path / "a.txt", "hay\n\ngrass")
    with pytest.raises(SystemExit), pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.stderr", (tmp_path / "said").open("w"))
        main([path, "--fix", str(tmp_path / "b.jsonl")])
    assert "is plain text: correct it in an editor" in (tmp_path / "said").read_text()
    assert not (tmp_path / "b.jsonl").exists()
