"""Whoever works for a request learns that it was cancelled."""

from __future__ import annotations

import pytest

from alpaca.cancellation import Cancellation, Cancelled


def test_work_looks_whether_it_is_still_wanted() -> None:
    cancellation = Cancellation()
    cancellation.check()
    cancellation.request()
    with pytest.raises(Cancelled):
        cancellation.check()


def test_a_request_calls_what_is_to_be_called_now_and_nothing_else() -> None:
    cancellation, called = Cancellation(), list[str]()
    with cancellation.calls(lambda: called.append("before")):
        pass
    with cancellation.calls(lambda: called.append("outer")), cancellation.calls(lambda: called.append("inner")):
        assert called == []
        cancellation.request()
        assert called == ["outer", "inner"]
    assert called == ["outer", "inner"]


def test_what_comes_after_the_request_is_called_at_once() -> None:
    cancellation, called = Cancellation(), list[str]()
    cancellation.request()
    with cancellation.calls(lambda: called.append("late")):
        assert called == ["late"]


def test_what_was_called_may_end_what_it_was_called_for() -> None:
    """It is called without a lock: a stream that is closed leaves `calls` on another thread, or on this one."""
    cancellation = Cancellation()
    calls = cancellation.calls(lambda: calls.__exit__(None, None, None))
    calls.__enter__()
    cancellation.request()
    assert cancellation.requested
