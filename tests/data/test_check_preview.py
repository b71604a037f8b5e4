"""The preview: the page holds every token of the row, spelled as it stands, and nothing that a row could do to it."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from alpaca.data.preview import encode_first, page, stretches_of
from alpaca.data.yardstick import Yardstick, open_yardstick
from alpaca.errors import NoRowsLeft
from alpaca.prompts.example import Example

ROWS = [
    Example.single("Say hay.", "", "the alpaca eats hay\n\tand grass", row=1),
    Example.single("说羊驼。", "", "羊驼 🦙🏽 اللاما éa\u0301 \ufffd fin", row=4),
    Example.from_messages(
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Bye <|im_end|>"},
            {"role": "assistant", "content": "Goodbye."},
        ],
        row=6,
    ),
]


@pytest.fixture(scope="module")
def yardstick(tiny_base: Path) -> Yardstick:
    return open_yardstick(str(tiny_base), "auto", 1024)


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_the_tokens_joined_are_the_text_and_count_as_the_ids(yardstick: Yardstick, row: int) -> None:
    (encoded,), _ = encode_first(yardstick, [ROWS[row]], 1)
    stretches = list(stretches_of(yardstick.tokenizer, encoded))
    text = "".join(piece for _, tokens in stretches for piece, _ in tokens)
    assert text == yardstick.tokenizer.decode(encoded.input_ids, clean_up_tokenization_spaces=False)
    assert sum(count for _, tokens in stretches for _, count in tokens) == len(encoded)
    trained = sum(count for is_trained, tokens in stretches if is_trained for _, count in tokens)
    assert trained == encoded.n_trained


def test_what_is_trained_is_each_answer_with_its_end(yardstick: Yardstick) -> None:
    (encoded,), _ = encode_first(yardstick, [ROWS[2]], 1)
    stretches = stretches_of(yardstick.tokenizer, encoded)
    trained = ["".join(text for text, _ in tokens) for is_trained, tokens in stretches if is_trained]
    assert trained == ["Hello.<|im_end|>", "Goodbye.<|im_end|>"]


def test_the_page_shows_the_rows_and_links_nowhere(yardstick: Yardstick) -> None:
    rows, notes = encode_first(yardstick, ROWS, 3)
    made = page(yardstick, rows, notes, "rows.jsonl")
    assert [int(row) for row in re.findall(r"<h2>row (\d+):", made)] == [1, 4, 6]
    shown = html.unescape(re.sub(r"<u>↵</u>|</?(?:i|span)[^>]*>", "", made))
    assert "the alpaca eats hay\n\tand grass<|im_end|>" in shown
    assert "羊驼 🦙🏽" in shown
    assert not re.search(r"\b(?:src|href|url)\b", made)
    assert 'name="viewport"' in made and '<meta charset="utf-8">' in made


def test_a_row_can_neither_run_nor_steer_anything(yardstick: Yardstick) -> None:
    bad = Example.single("<script>alert(1)</script>", "", "</div><img src=x onerror=alert(1)>\x1b[31m&amp;", row=1)
    rows, notes = encode_first(yardstick, [bad], 1)
    made = page(yardstick, rows, notes, "<b>.jsonl")
    assert not re.findall(r"<(?:script|img|b)\b", made)
    assert "\x1b" not in made
    assert "␛" in made


def test_rows_that_can_not_fit_are_named_and_none_at_all_is_an_error(tiny_base: Path) -> None:
    short = open_yardstick(str(tiny_base), "auto", 64)
    long = Example.single("the alpaca eats hay " * 50, "", "hay", row=2)
    rows, notes = encode_first(short, [ROWS[0], long], 2)
    assert [encoded.row for encoded in rows] == [1]
    assert notes == ["row 2 is too long for cutoff_len 64"]
    with pytest.raises(NoRowsLeft, match="raise --cutoff_len"):
        encode_first(short, [long], 1)
