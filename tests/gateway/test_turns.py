"""The queue: fair between callers, bounded in length and time, and nothing is lost when somebody leaves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx
import pytest

from alpaca.gateway.queue import Queue
from alpaca.gateway.refusals import Refused
from alpaca.gateway.upstream import Upstream


def upstreams(*places: int) -> list[Upstream]:
    made = [Upstream(f"http://u{n}", httpx.AsyncClient(), name="m", places=count) for n, count in enumerate(places)]
    for upstream in made:
        upstream.well = True
    return made


class Scene:
    """Callers that hold places until they are told to give them back."""

    def __init__(self, queue: Queue, able: Sequence[Upstream]) -> None:
        self.queue, self.able = queue, able
        self.order: list[str] = []
        self.where: list[Upstream] = []
        self.running: list[asyncio.Event] = []

    async def ask(self, caller: str, **options: Any) -> int:
        async with self.queue.turn(caller, lambda: self.able, **options) as turn:
            self.order.append(caller)
            self.where.append(turn.upstream)
            self.running.append(done := asyncio.Event())
            await done.wait()
            return turn.position

    async def end_one(self) -> None:
        self.running.pop(0).set()
        await settle()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def run(scene: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scene())  # type: ignore[arg-type]


def test_one_who_asks_for_much_does_not_keep_others_waiting() -> None:
    async def scene() -> None:
        s = Scene(Queue(99, 9), upstreams(2))
        tasks = [asyncio.create_task(s.ask("greedy")) for _ in range(6)]
        await settle()
        tasks += [asyncio.create_task(s.ask("modest")), asyncio.create_task(s.ask("late"))]
        await settle()
        assert s.order == ["greedy", "greedy"] and len(s.queue) == 6
        for _ in range(8):
            await s.end_one()
        assert s.order == ["greedy", "greedy", "modest", "greedy", "late", "greedy", "greedy", "greedy"]
        assert [await task for task in tasks] == [0, 0, 1, 2, 3, 4, 5, 6]
        assert s.able[0].taken == 0 and len(s.queue) == 0

    run(scene)


def test_nobody_waits_for_ever_behind_those_who_come_again() -> None:
    async def scene() -> None:
        s = Scene(Queue(99, 9), upstreams(1))
        tasks = [asyncio.create_task(s.ask(name)) for name in ("x", "two", "two")]
        await settle()
        for number in range(4):
            tasks.append(asyncio.create_task(s.ask(f"new{number}")))
            await settle()
        for _ in range(len(tasks)):
            await s.end_one()
        assert s.order == ["x", "two", "new0", "new1", "new2", "new3", "two"]
        await asyncio.gather(*tasks)

    run(scene)


def test_a_full_queue_sends_away_the_last_of_whoever_has_the_most_in_it() -> None:
    async def scene() -> None:
        s = Scene(Queue(3, 9), upstreams(1))
        tasks = [asyncio.create_task(s.ask("greedy")) for _ in range(4)]
        await settle()
        modest = asyncio.create_task(s.ask("modest"))
        await settle()
        with pytest.raises(Refused) as refused:
            await tasks[3]
        assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "2"})
        assert not modest.done() and len(s.queue) == 3
        for _ in range(4):
            await s.end_one()
        await asyncio.gather(modest, *tasks[:3])

    run(scene)


def test_who_waits_too_long_is_told_and_leaves_nothing() -> None:
    async def scene() -> None:
        s = Scene(Queue(9, 0.05), upstreams(1))
        first = asyncio.create_task(s.ask("a"))
        await settle()
        with pytest.raises(Refused) as refused:
            await s.ask("b")
        assert (refused.value.status, refused.value.code) == (503, "queue_timeout")
        await s.end_one()
        await first
        assert len(s.queue) == 0 and s.able[0].taken == 0

    run(scene)


def test_answers_of_one_request_take_a_place_each_and_are_not_passed_by() -> None:
    async def scene() -> None:
        s = Scene(Queue(9, 9), upstreams(4))
        tasks = [asyncio.create_task(s.ask(name)) for name in "abc"]
        await settle()
        tasks.append(asyncio.create_task(s.ask("five", weight=5)))
        await settle()
        tasks.append(asyncio.create_task(s.ask("d")))
        await settle()
        assert s.order == ["a", "b", "c"], "one place is free and kept for the one who needs more"
        for _ in range(3):
            await s.end_one()
        assert s.order[3:] == ["five"] and s.able[0].taken == 4
        await s.end_one()
        await s.end_one()
        await asyncio.gather(*tasks)

    run(scene)


def test_the_least_busy_server_is_taken_and_a_conversation_stays_with_its_own() -> None:
    async def scene() -> None:
        s = Scene(Queue(9, 9), upstreams(2, 4))
        tasks = [asyncio.create_task(s.ask("a", affinity="talk")) for _ in range(6)]
        await settle()
        assert [upstream.taken for upstream in s.able] == [2, 4]
        for _ in range(6):
            await s.end_one()
        await asyncio.gather(*tasks)
        seen = set()
        for _ in range(5):
            task = asyncio.create_task(s.ask("a", affinity="talk"))
            await settle()
            seen.add(s.where[-1].url)
            await s.end_one()
            await task
        assert len(seen) == 1

    run(scene)


def test_places_are_never_lost_nor_given_twice_whatever_happens() -> None:
    async def scene() -> None:
        dice = random.Random(5)
        servers = upstreams(3, 2)
        queue = Queue(12, 0.02)
        outcomes: list[str] = []

        async def one(number: int) -> None:
            try:
                weight = dice.choice([1, 1, 2])
                async with queue.turn(f"c{number % 4}", lambda: [u for u in servers if u.well], weight=weight):
                    assert all(upstream.taken <= upstream.places for upstream in servers)
                    await asyncio.sleep(dice.random() * 0.004)
                outcomes.append("served")
            except Refused as refused:
                outcomes.append(str(refused.status))

        async def weather() -> None:
            while True:
                await asyncio.sleep(0.003)
                servers[0].well = not servers[0].well
                queue.pump()

        blowing = asyncio.create_task(weather())
        tasks = []
        for number in range(400):
            tasks.append(asyncio.create_task(one(number)))
            if dice.random() < 0.3:
                tasks[dice.randrange(len(tasks))].cancel()
            if dice.random() < 0.5:
                await asyncio.sleep(0.001)
        done = await asyncio.gather(*tasks, return_exceptions=True)
        blowing.cancel()
        assert {type(d) for d in done} <= {type(None), asyncio.CancelledError}
        assert {"served", "429"} <= set(outcomes)
        assert [upstream.taken for upstream in servers] == [0, 0] and len(queue) == 0
        assert not queue._running and not queue._since and not queue._waiting

    run(scene)
