"""The queue in front of the servers' places: bounded, and fair between those who ask."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from alpaca.gateway.pool import least_busy
from alpaca.gateway.refusals import RATE, SERVER, Refused
from alpaca.gateway.upstream import Upstream

Able = Callable[[], Sequence[Upstream]]


@dataclass(eq=False)
class Ticket:
    """One request that waits. `able`: the servers that could answer it now, busy or not."""

    caller: str
    able: Able
    weight: int
    affinity: str
    position: int
    """How many waited when it came, itself included; 0: none did, and it was served at once."""
    taken: int = 0
    """Places that it holds."""
    granted: asyncio.Future[Upstream] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(frozen=True)
class Turn:
    """A place that is held."""

    upstream: Upstream
    position: int
    waited: float
    """Seconds."""


class Queue:
    """Turns go to the caller with the fewest requests in work; of several, to the one who has waited longest since its
    last turn. One caller's requests keep their order."""

    def __init__(self, most: int, seconds: float) -> None:
        self._most = most
        self._seconds = seconds
        self._waiting: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self._running: Counter[str] = Counter()
        self._since: dict[str, int] = {}  # when a caller began to wait, or had its last turn
        self._clock = itertools.count(1)

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def turn(self, caller: str, able: Able, *, weight: int = 1, affinity: str = "") -> AsyncIterator[Turn]:
        """Wait for a place and hold it; `weight` is how many it takes. Raises Refused: 429 where too many wait, 503
        where the time is over."""
        came = time.monotonic()
        ticket = Ticket(caller, able, weight, affinity, len(self) + 1)
        if caller not in self._waiting:
            self._waiting[caller] = deque()
            self._since[caller] = next(self._clock)
        self._waiting[caller].append(ticket)
        self.pump()
        if ticket.granted.done():
            ticket.position = 0
        elif len(self) > self._most:
            self._drop_one()
        try:
            async with asyncio.timeout(self._seconds):
                upstream = await asyncio.shield(ticket.granted)
        except TimeoutError:
            self._leave(ticket)
            raise Refused(
                503, f"no turn came within {self._seconds:g} s; {len(self)} requests wait: ask again later",
                kind=SERVER, code="queue_timeout", retry_after=5,
            ) from None  # fmt: skip
        except BaseException:
            self._leave(ticket)
            raise
        try:
            yield Turn(upstream, ticket.position, time.monotonic() - came)
        finally:
            self._give_back(ticket, upstream)

    def pump(self) -> None:
        """Give turns for as long as somebody waits for whom there is room."""
        blocked: set[Upstream] = set()
        while (found := self._next(blocked)) is not None:
            ticket, upstream = found
            self._remove(ticket)
            ticket.taken = min(ticket.weight, upstream.places)
            upstream.taken += ticket.taken
            self._running[ticket.caller] += 1
            self._since[ticket.caller] = next(self._clock)
            ticket.granted.set_result(upstream)

    def _next(self, blocked: set[Upstream]) -> tuple[Ticket, Upstream] | None:
        """The next one to be served, and where. Servers that somebody waits for in vain are kept for him: `blocked`."""
        heads = [tickets[0] for tickets in self._waiting.values()]
        for ticket in sorted(heads, key=lambda head: (self._running[head.caller], self._since[head.caller])):
            able = [upstream for upstream in ticket.able() if upstream not in blocked]
            free = [upstream for upstream in able if upstream.free >= min(ticket.weight, upstream.places)]
            if free:
                return ticket, least_busy(free, ticket.affinity)
            blocked.update(able)
        return None

    def _give_back(self, ticket: Ticket, upstream: Upstream) -> None:
        upstream.taken -= ticket.taken
        self._running[ticket.caller] -= 1
        self._forget(ticket.caller)
        self.pump()

    def _leave(self, ticket: Ticket) -> None:
        """Somebody goes away before his turn, or in the moment in which it came."""
        if ticket.granted.done() and not ticket.granted.cancelled() and ticket.granted.exception() is None:
            self._give_back(ticket, ticket.granted.result())
        else:
            self._remove(ticket)
            ticket.granted.cancel()

    def _remove(self, ticket: Ticket) -> None:
        tickets = self._waiting.get(ticket.caller)
        if tickets is not None and ticket in tickets:
            tickets.remove(ticket)
            if not tickets:
                del self._waiting[ticket.caller]
                self._forget(ticket.caller)

    def _forget(self, caller: str) -> None:
        """Whoever neither waits nor runs leaves nothing behind."""
        if not self._running[caller]:
            del self._running[caller]
            if caller not in self._waiting:
                self._since.pop(caller, None)

    def _drop_one(self) -> None:
        """The queue is full: the last request of whoever has the most in it goes, so that nobody fills it alone."""
        longest = max(self._waiting.values(), key=len)
        ticket = longest[-1]
        self._remove(ticket)
        ticket.granted.set_exception(
            Refused(
                429,
                f"{self._most} requests wait already: ask again later",
                kind=RATE,
                code="queue_full",
                retry_after=2,
            )
        )
