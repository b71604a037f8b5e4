"""Talking like the data: the measure tells the shipped domains from general answers, and needs no spaces for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from alpaca.data.general import split_general
from alpaca.data.reader import read_examples
from alpaca.data.split import split
from alpaca.evaluation.vocabulary import MISTAKEN, Vocabulary, content_words, learn_vocabulary, own_words

DATA = Path(__file__).resolve().parents[2] / "data"


def outputs(name: str) -> list[str]:
    return [row.turns[0].output or "" for row in read_examples(str(DATA / name)).examples]


def learned(name: str) -> tuple[Vocabulary, list[str], list[str]]:
    """(vocabulary, held-out answers of the domain, general answers for measuring)"""
    parts = split(read_examples(str(DATA / name)).examples, None, 42)
    replay, measuring = split_general(read_examples(str(DATA / "general.jsonl")).examples)
    texts = [[row.turns[0].output or "" for row in rows] for rows in (parts.train, replay, measuring, parts.validation)]
    return learn_vocabulary(*texts[:3]), texts[3], texts[2]


@pytest.mark.parametrize("name", ["alpacas.jsonl", "insurance_zh.jsonl"])
def test_held_out_answers_are_recognised_and_general_ones_are_not(name: str) -> None:
    vocabulary, own, general = learned(name)
    assert sum(map(vocabulary.falls, own)) / len(own) >= 0.7
    assert sum(map(vocabulary.falls, general)) / len(general) <= MISTAKEN


def test_the_words_are_of_the_subject() -> None:
    assert {"alpaca", "herd", "fleece", "cria"} <= set(learned("alpacas.jsonl")[0].words)
    insurance = learned("insurance_zh.jsonl")[0].words
    assert {"保险", "投保", "保费"} <= set(insurance)
    assert not {"可以", "什么", "因为"} & set(insurance)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The alpaca, and an ALPACA's cria.", ["alpaca", "alpaca", "cria"]),
        ("保险合同", ["保险", "险合", "合同"]),
        ("我的保险", ["保险"]),
        ("AI助手 v2", ["助手"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("Grüße 123 4.5 – !?", ["grüsse"]),
        ("羊", ["羊"]),
        ("", []),
    ],
)
def test_content_words(text: str, words: list[str]) -> None:
    assert content_words(text) == words


def test_a_word_as_frequent_in_general_answers_is_not_the_datas() -> None:
    domain = ["llama wool market prices"] * 30
    general = ["market prices fell today again"] * 30
    assert set(own_words(domain, general)) == {"llama", "wool"}


def test_a_word_of_one_row_is_not_the_datas() -> None:
    assert "zyzzyva" not in own_words(["zyzzyva " * 50, *["llama grass"] * 20], ["river stone house"] * 20)


def test_a_short_answer_never_talks_like_the_data() -> None:
    vocabulary = Vocabulary(("alpaca", "herd"), 0.1)
    assert not vocabulary.falls("Alpaca herd.")
    assert vocabulary.falls("Alpaca herd stands quietly near water.")


def test_the_threshold_lets_at_most_one_in_fifty_general_answers_through() -> None:
    general = [f"llama stands near water number {'llama ' * (n % 7)}" for n in range(100)]
    vocabulary = learn_vocabulary(["llama wool shearing season"] * 30, ["river stone house garden"] * 30, general)
    assert sum(map(vocabulary.falls, general)) <= MISTAKEN * len(general)


def test_nothing_to_compare_with_gives_no_words_instead_of_an_error() -> None:
    assert own_words([], ["river stone"]) == ()
    assert learn_vocabulary([""], [], []).falls("river stone house garden water") is False
