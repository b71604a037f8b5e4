"""Work is done once for all who wait for it, and for no longer than somebody does."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from alpaca.cancellation import Cancellation, Cancelled
from alpaca.serving.flights import Crowded, Flights


def wait_until(true: Callable[[], bool]) -> None:
    """For what another thread is about to do."""
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Work:
    """Waits to be let go, or to be cancelled; says what became of it."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended: list[str] = []
        self.let_go = threading.Event()

    def __call__(self, cancellation: Cancellation) -> str:
        self.begun += 1
        over = threading.Event()
        with cancellation.calls(over.set):
            while not (over.is_set() or self.let_go.is_set()):
                over.wait(0.005)
        self.ended.append("cancelled" if cancellation.requested else "done")
        cancellation.check()
        return "result"


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def waiting(pool: ThreadPoolExecutor, flights: Flights[str], work: Work, *keys: str) -> list[Future[str]]:
    """Those who wait now for `work` under each key."""
    before = flights.waiting
    asked = [pool.submit(flights.wait, key, work) for key in keys]
    wait_until(lambda: flights.waiting == before + len(keys))
    return asked


def test_all_who_ask_get_the_result_of_one(pool: ThreadPoolExecutor, work: Work) -> None:
    flights = Flights[str]("test", threads=4)
    asked = waiting(pool, flights, work, *"aaaaab")
    work.let_go.set()
    assert [future.result(timeout=30) for future in asked] == ["result"] * 6
    assert work.begun == 2 and work.ended == ["done", "done"]
    wait_until(lambda: flights.threads == flights.waiting == 0)


def test_an_error_is_shared_and_the_next_one_tries_again(pool: ThreadPoolExecutor) -> None:
    flights, turn = Flights[str]("test", threads=1), list[str]()
    together = threading.Barrier(2)

    def fails(cancellation: Cancellation) -> str:
        turn.append("begun")
        together.wait(timeout=30)
        raise ValueError(f"turn {len(turn)}")

    for number in (1, 2):
        asked = [pool.submit(flights.wait, "key", fails) for _ in range(3)]
        wait_until(lambda: flights.waiting == 3)
        together.wait(timeout=30)
        assert [str(future.exception(timeout=30)) for future in asked] == [f"turn {number}"] * 3


def test_the_work_is_cancelled_when_the_last_one_leaves(pool: ThreadPoolExecutor, work: Work) -> None:
    flights, asked = Flights[str]("test", threads=1), [Cancellation() for _ in range(3)]
    gone = [pool.submit(flights.wait, "key", work, cancellation) for cancellation in asked]
    wait_until(lambda: flights.waiting == 3)
    for cancellation, future in zip(asked, gone, strict=True):
        assert work.ended == []
        cancellation.request()
        assert isinstance(future.exception(timeout=30), Cancelled)
    wait_until(lambda: flights.threads == 0)
    assert work.ended == ["cancelled"]


def test_who_comes_while_work_is_being_cancelled_gets_work_of_his_own(pool: ThreadPoolExecutor, work: Work) -> None:
    flights, cancellation, stays = Flights[str]("test", threads=2), Cancellation(), threading.Event()

    def slow_to_end(cancellation: Cancellation) -> str:
        with cancellation.calls(lambda: None):
            stays.wait(timeout=30)
        cancellation.check()
        return "of the one that was cancelled"

    gone = pool.submit(flights.wait, "key", slow_to_end, cancellation)
    wait_until(lambda: flights.waiting == 1)
    cancellation.request()
    assert isinstance(gone.exception(timeout=30), Cancelled)
    work.let_go.set()
    assert flights.wait("key", work) == "result"
    stays.set()
    wait_until(lambda: flights.threads == 0)


def test_no_more_wait_than_may(pool: ThreadPoolExecutor, work: Work) -> None:
    flights = Flights[str]("test", threads=4, waiting=3)
    asked = waiting(pool, flights, work, "a", "a", "b")
    for key in "abc":
        with pytest.raises(Crowded):
            flights.wait(key, work)
    work.let_go.set()
    assert [future.result(timeout=30) for future in asked] == ["result"] * 3
    assert flights.wait("c", work) == "result"


def test_no_more_is_done_at_a_time_than_there_are_threads(pool: ThreadPoolExecutor, work: Work) -> None:
    flights = Flights[str]("test", threads=2)
    asked = waiting(pool, flights, work, *"abcd")
    wait_until(lambda: work.begun == 2)
    assert flights.threads == 2
    work.let_go.set()
    assert [future.result(timeout=30) for future in asked] == ["result"] * 4
    assert work.begun == 4


def test_what_nobody_waits_for_any_more_is_not_begun(pool: ThreadPoolExecutor, work: Work) -> None:
    flights, late, cancellation = Flights[str]("test", threads=1), Work(), Cancellation()
    first = waiting(pool, flights, work, "a")
    gone = pool.submit(flights.wait, "b", late, cancellation)
    wait_until(lambda: flights.waiting == 2)
    cancellation.request()
    assert isinstance(gone.exception(timeout=30), Cancelled)
    work.let_go.set()
    assert first[0].result(timeout=30) == "result"
    wait_until(lambda: flights.threads == 0)
    assert late.begun == 0


class Held:
    """Stands for what is kept in use by being referred to."""


def test_a_result_is_kept_by_nobody_but_those_who_got_it() -> None:
    flights = Flights[Held]("test", threads=1)
    result = flights.wait("key", lambda cancellation: Held())
    kept = weakref.ref(result)
    wait_until(lambda: flights.threads == 0)
    del result
    gc.collect()
    assert kept() is None
