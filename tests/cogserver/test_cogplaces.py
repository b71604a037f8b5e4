"""A server that says BUSY while nothing runs has lost its places; one that is busy has not."""

from __future__ import annotations

import pytest

from alpaca.cogserver.places import LOOKS, Places


def look(places: Places, *statuses: str) -> bool:
    for status in statuses:
        places.look(status)
    return places.all_lost


def test_busy_with_nothing_to_do_is_lost_after_some_looks() -> None:
    places = Places()
    assert not look(places, *["BUSY"] * (LOOKS - 1))
    assert look(places, "BUSY")
    assert look(places, "READY")  # for good


@pytest.mark.parametrize(
    "statuses", [["READY"] * 9, ["BUSY", "BUSY", "READY"] * 3, ["NO_ANSWER"] * 9, ["STARTING"] * 9]
)
def test_what_is_not_always_busy_is_not_lost(statuses: list[str]) -> None:
    assert not look(Places(), *statuses)


def test_a_prediction_that_runs_long_is_not_lost() -> None:
    places = Places()
    with places.taken():
        assert not look(places, *["BUSY"] * 9)


def test_predictions_that_come_and_go_between_the_looks_are_seen() -> None:
    places = Places()
    for _ in range(9):
        with places.taken():
            pass
        assert not look(places, "BUSY")


def test_a_prediction_that_fails_gives_its_place_back() -> None:
    places = Places()
    with pytest.raises(ValueError), places.taken():
        raise ValueError
    assert look(places, *["BUSY"] * (LOOKS + 1))
