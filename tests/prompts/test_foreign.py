"""Answers behind other rows' questions: token for token the same answer, never its own question, the same each time."""

from __future__ import annotations

import numpy as np
import pytest

from alpaca.prompts.encode import Encoded
from alpaca.prompts.foreign import after, foreign_rows, has_question, own_answer


def row(number: int, question: list[int], answer: list[int]) -> Encoded:
    return Encoded([1, *question, *answer], [(1 + len(question), 1 + len(question) + len(answer))], number)


ROWS = [row(n, [10 + n, 30 + n], [50 + n] * n) for n in range(1, 9)]


def question(encoded: Encoded) -> list[int]:
    return encoded.input_ids[: encoded.trained[0][0]]


def test_the_answer_keeps_its_tokens_behind_another_question() -> None:
    found = after(ROWS[0], ROWS[4])
    assert found.input_ids == [1, 11, 31, *[55] * 5] and found.trained == [(3, 8)] and found.row == 5
    assert len(found.input_ids[3:8]) == found.n_trained == ROWS[4].n_trained


def test_each_answer_has_as_many_other_questions_as_asked_for_and_never_its_own() -> None:
    found = foreign_rows(ROWS, 4, 100)
    assert found.places.tolist() == [place for place in range(8) for _ in range(4)]
    assert found.ranks.tolist() == [0, 1, 2, 3] * 8
    for place in range(8):
        asked = [tuple(question(found.rows[n])) for n in np.flatnonzero(found.places == place)]
        assert len(set(asked)) == 4 and tuple(question(ROWS[place])) not in asked
    assert found.rows == foreign_rows(ROWS, 4, 100).rows


def test_only_the_first_answers_are_asked_but_after_the_questions_of_all() -> None:
    found = foreign_rows(ROWS, 7, 100, answers=2)
    assert found.answers.tolist() == [0, 1] and len(found.rows) == 14


def test_a_row_takes_what_there_is() -> None:
    assert foreign_rows(ROWS[:1], 4, 100).rows == []
    assert foreign_rows(ROWS[:2], 4, 100).places.tolist() == [0, 1]


def test_equal_questions_and_equal_answers_are_no_others() -> None:
    same = [row(1, [7, 8], [50]), row(2, [7, 8], [51]), row(3, [9], [50]), row(4, [6], [52])]
    found = foreign_rows(same, 4, 100)
    asked = {
        place: sorted(question(found.rows[n])[1] for n in np.flatnonzero(found.places == place)) for place in range(4)
    }
    assert asked == {0: [6], 1: [6, 9], 2: [6, 7], 3: [7, 9]}
    assert foreign_rows([row(n, [7, 8], [50 + n]) for n in range(5)], 4, 100).rows == []


def test_what_would_be_too_long_is_left_out() -> None:
    rows = [*ROWS[:3], row(9, [5] * 40, [60])]
    found = foreign_rows(rows, 4, 20)
    assert max(map(len, found.rows)) <= 20 and found.answers.tolist() == [0, 1, 2, 3]
    assert all(found.rows[n].row == 9 for n in np.flatnonzero(found.places == 3))


def test_questions_come_from_the_row_s_own_group_as_far_as_it_has_them() -> None:
    groups = ["en", "zh"] * 4
    found = foreign_rows(ROWS, 3, 100, groups=groups)
    for index, place in enumerate(found.places):
        assert (question(found.rows[index])[1] - 11) % 2 == place % 2
    mixed = foreign_rows(ROWS, 5, 100, groups=groups)
    assert [(question(mixed.rows[n])[1] - 11) % 2 for n in range(5)][:3] == [0, 0, 0] and len(mixed.rows) == 40


def test_raw_text_has_no_question_and_lends_none() -> None:
    raw = Encoded([4, 5, 6, 7], [(1, 4)], 3)
    found = foreign_rows([*ROWS[:3], raw], 4, 100)
    assert not has_question(raw) and found.answers.tolist() == [0, 1, 2] and len(found.rows) == 6


def test_of_a_conversation_the_last_answer_counts_with_all_before_it_as_its_question() -> None:
    talk = Encoded([1, 11, 51, 12, 52, 53], [(2, 3), (4, 6)], 9)
    found = foreign_rows([talk, *ROWS[:2]], 1, 100)
    assert found.rows[0].input_ids[-2:] == [52, 53] and found.rows[0].n_trained == 2
    assert own_answer(talk).trained == [(4, 6)]
    lent = foreign_rows([ROWS[0], talk], 1, 100).rows[0]
    assert lent.input_ids == [1, 11, 51, 12, 51]


@pytest.mark.parametrize(("rows", "others", "expected"), [(8, 4, 32), (3, 4, 12), (8, 2, 16), (3, 1, 3), (0, 4, 0)])
def test_fewer_are_chosen_without_changing_those_that_stay(rows: int, others: int, expected: int) -> None:
    found = foreign_rows(ROWS, 4, 100)
    picked = found.pick(found.chosen(rows, others))
    assert len(picked.rows) == expected
    assert all(picked.ranks < others) and all(picked.places < rows)
