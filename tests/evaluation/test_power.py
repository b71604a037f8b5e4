"""What may be chance, and what so few rows or tests could not have shown."""

from __future__ import annotations

import pytest

from alpaca.evaluation.bootstrap import Interval
from alpaca.evaluation.power import hidden_by_answers, hidden_by_rows, hidden_by_tests, hidden_losses, sign_test
from tests.evaluation.measured import probing


@pytest.mark.parametrize(
    ("lost", "won", "chance"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 2 / 32), (6, 0, 2 / 64), (0, 6, 2 / 64), (2, 10, 158 / 4096), (9, 3, 598 / 4096)],
)
def test_the_sign_test_is_the_exact_one(lost: int, won: int, chance: float) -> None:
    assert sign_test(lost, won) == pytest.approx(chance)
    assert sign_test(40, 40) == 1.0


@pytest.mark.parametrize("won", [0, 1, 4, 8])
def test_one_more_than_the_hidden_losses_is_no_chance(won: int) -> None:
    assert sign_test(hidden_losses(won), won) > 0.05 >= sign_test(hidden_losses(won) + 1, won)


def test_what_could_hide_is_said_in_words() -> None:
    said = hidden_by_tests(probing(("logic", 40, 30, 30)))
    assert "With 40 tests, a fall of up to 5 tests (13 points) could hide" in said
    many = hidden_by_tests(probing(("logic", 40, 30, 32, 6)))
    assert "up to 11 tests (28 points)" in many and "beside the 8 that were won" in many
    assert "even if all 3 were lost" in hidden_by_tests(probing(("logic", 40, 3, 3)))
    assert "passed none of the 40 tests" in hidden_by_tests(probing(("logic", 40, 0, 0)))
    assert "With 16 rows, a change of the loss by less than about 0.10" in hidden_by_rows(Interval(0, -0.1, 0.1), 16)
    assert "fewer than 6 more" in hidden_by_answers(50, 0)
    assert "3 answers are too few" in hidden_by_answers(3, 0)
