"""Copies: exact ones, near ones, and one question with several answers; and what is none of them."""

from __future__ import annotations

import random

from alpaca.data.duplicates import find_duplicates
from alpaca.prompts.example import Example

WORDS = ("alpaca", "hay", "grass", "fleece", "herd", "cria", "shear", "stall", "wool", "hum", "graze", "fence", "water")


def passage(seed: int, words: int = 60) -> list[str]:
    rng = random.Random(seed)
    return [f"{rng.choice(WORDS)}{rng.randrange(50)}" for _ in range(words)]


def example(row: int, instruction: str, output: str, input: str = "") -> Example:
    return Example.single(instruction, input, output, row=row)


def unlike(count: int) -> list[Example]:
    return [example(n, " ".join(passage(n, 8)), " ".join(passage(-n))) for n in range(1, count + 1)]


def test_unlike_rows_are_no_duplicates() -> None:
    found = find_duplicates(unlike(200))
    assert (found.exact, found.near, found.answers) == ([], [], [])


def test_exact_copies_are_grouped_in_the_order_of_the_file() -> None:
    rows = unlike(5)
    copies = [Example(rows[number].turns, row=row) for number, row in ((1, 6), (3, 7), (1, 8))]
    found = find_duplicates([*rows, *copies])
    assert found.exact == [[2, 6, 8], [4, 7]]
    assert found.near == []


def test_a_row_that_differs_in_a_word_is_a_near_copy_wherever_it_stands() -> None:
    rows = unlike(300)
    for number in range(0, 300, 10):
        turn = rows[number].turns[0]
        words = (turn.output or "").split()
        words[number % len(words)] = "other"
        rows.append(example(1000 + number, turn.instruction, " ".join(words)))
    assert find_duplicates(rows).near == [[number + 1, 1000 + number] for number in range(0, 300, 10)]


def test_case_spaces_and_punctuation_make_no_difference() -> None:
    found = find_duplicates([example(1, "Who are you?", "I am a keeper."), example(2, "who are you", "I am a keeper!")])
    assert found.near == [[1, 2]]


def test_near_copies_are_found_in_scripts_without_spaces() -> None:
    text = (
        "羊驼是一种原产于南美洲安第斯山脉的家畜，人们主要为了它们柔软的绒毛而饲养它们，它们喜欢群居，靠吃草和干草为生。"
    )
    found = find_duplicates(
        [example(1, "介绍一下羊驼。", text), example(2, "介绍一下羊驼。", text.replace("喜欢", "习惯"))]
    )
    assert found.near == [[1, 2]]


def test_the_same_form_with_another_content_is_no_copy() -> None:
    ask = "Translate the following word of the keeper's handbook into French, and give nothing but the word."
    found = find_duplicates([example(1, ask, "foin", "hay"), example(2, ask, "herbe", "grass")])
    assert found.near == []


def test_a_question_with_different_answers_is_told_apart_from_copies() -> None:
    found = find_duplicates(
        [example(1, "A number?", "one"), example(2, "A number?", "two"), example(3, "A number?", "one")]
    )
    assert found.exact == [[1, 3]]
    assert found.answers == [[1, 2]]


def test_a_thousand_variations_of_one_row_are_one_group() -> None:
    words = passage(7, 80)
    rows = []
    for number in range(1000):
        changed = list(words)
        changed[number % 80] = f"x{number}"
        rows.append(example(number + 1, "Describe the herd.", " ".join(changed)))
    (group,) = find_duplicates(rows).near
    assert group == list(range(1, 1001))


def test_conversations_are_compared_as_a_whole() -> None:
    said = [{"role": role, "content": " ".join(passage(n))} for n, role in enumerate(["user", "assistant"] * 2)]
    one = Example.from_messages(said, row=1)
    other = Example.from_messages([*said[:3], {"role": "assistant", "content": "Nothing alike."}], row=2)
    assert find_duplicates([one, other]).near == []
    assert find_duplicates([one, Example(one.turns, row=2)]).exact == [[1, 2]]


def test_no_rows_and_a_very_long_row_are_no_trouble() -> None:
    assert find_duplicates([]).exact == []
    long = "hay " * 100_000
    assert find_duplicates([example(1, "a", long), example(2, "b", "short")]).near == []
