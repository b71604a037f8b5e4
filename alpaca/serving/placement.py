"""Which adapters are in memory: those of the answers that run, and those of the answers that are next."""

from __future__ import annotations

import time
from collections.abc import Iterable

from alpaca.errors import NoRoom
from alpaca.serving.adapters import Adapter
from alpaca.serving.lora import LoraStack, Place
from alpaca.serving.reader import AdapterReader
from alpaca.serving.sequence import Sequence

PATIENCE = 120.0  # seconds a request waits for a place for its adapter while all are in use


class Placement:
    """Gives answers places for all of their adapters at once, or none, and reads what is missing meanwhile.

    Used by the engine's thread alone.
    """

    def __init__(self, stack: LoraStack, reader: AdapterReader) -> None:
        self._stack = stack
        self._reader = reader

    def keep_for(self, waiting: Iterable[Sequence]) -> None:
        """Forget what was read for answers that wait no longer."""
        self._reader.forget_all_but({used.digest for answer in waiting for used, _ in answer.job.adapters})

    def place(self, answer: Sequence, first: Sequence | None, running: Iterable[Sequence]) -> bool:
        """Pin all of an answer's adapters, or none: False while it has to wait, behind `first` where there is one.

        Raises NoRoom after PATIENCE, or what reading an adapter raised.
        """
        adapters = [adapter for adapter, _ in answer.job.adapters]
        places = self._stack.find_all([adapter.digest for adapter in adapters])
        if first is None:
            places = places or self._make_places(answer, adapters)
        elif first.blocked and _delays(answer, running):
            places = None
        if places is None:
            return False
        for place in places:
            self._stack.pin(place)
        answer.places = tuple(zip(places, (scale for _, scale in answer.job.adapters), strict=True))
        return True

    def give_back(self, answer: Sequence) -> None:
        """Unpin an answer's adapters, if it has any."""
        for place, _ in answer.places:
            self._stack.unpin(place)
        answer.places = ()

    def _make_places(self, answer: Sequence, adapters: list[Adapter]) -> list[Place] | None:
        """Places for all of an answer's adapters, of which some may have one; None while they are being read or those
        in use leave too little room."""
        there = [place for adapter in adapters if (place := self._stack.find(adapter.digest)) is not None]
        missing = [adapter for adapter in adapters if self._stack.find(adapter.digest) is None]
        read = {adapter.digest: self._reader.read(adapter) for adapter in missing}
        ready = {digest: weights for digest, weights in read.items() if weights is not None}
        if len(ready) < len(missing):
            return None
        room = self._stack.put(ready, beside=there)
        if not room:
            answer.blocked = answer.blocked or time.perf_counter()
            if time.perf_counter() - answer.blocked <= PATIENCE:
                return None
        for adapter in missing:
            self._reader.forget(adapter)
        if not room:
            raise NoRoom(f"all places for adapters were in use for {PATIENCE:g} s; ask again later")
        return self._stack.find_all([adapter.digest for adapter in adapters])


def _delays(answer: Sequence, running: Iterable[Sequence]) -> bool:
    """Whether adapters might stay in use for longer than they may now, if this answer ran too.

    While somebody waits for room nothing that does begins, so the wait has an end however many requests come.
    """
    return answer.longest > max((other.longest for other in running if other.places), default=0)
