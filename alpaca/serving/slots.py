"""Which answer has which slot, and which tokens each slot still remembers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

WORTH = 8  # tokens; a shorter common beginning isn't looked for

Key = tuple[tuple[tuple[str, float], ...], str]
"""What makes keys and values valid for a request: the content hashes of its adapters, each with its strength, in the
order of the hashes, and the scope of those who may use them; without any adapter it is the base."""
BASE: Key = ((), "")


@dataclass
class Slot:
    """One place in the cache. `tokens` are those whose keys and values it holds, computed under `key`."""

    number: int
    key: Key = BASE
    tokens: list[int] = field(default_factory=list)
    taken: bool = False
    last_used: int = 0


@dataclass(frozen=True)
class Grant:
    """A slot, and how many tokens need not be computed again; these are copied from `source`, where there is one."""

    slot: Slot
    reused: int
    source: Slot | None


class Slots:
    """Hands out slots, the one that remembers most of the prompt first."""

    def __init__(self, count: int) -> None:
        self._slots = [Slot(number) for number in range(count)]
        self._clock = 0

    @property
    def free(self) -> int:
        return sum(not slot.taken for slot in self._slots)

    def take(self, key: Key, prompt: Sequence[int]) -> Grant | None:
        """A slot for `prompt`, or None where all are taken. At least the prompt's last token is left to compute."""
        idle = [slot for slot in self._slots if not slot.taken]
        if not idle:
            return None
        reused, best = max(
            ((self._common(slot, key, prompt), slot) for slot in self._slots),
            key=lambda found: (found[0], not found[1].taken),
        )
        if reused < WORTH:
            reused, chosen = 0, self._least_worth(idle)
        elif best.taken or (len(best.tokens) > 2 * reused and len(idle) > 1):
            # Running, or with much more in it than this prompt uses: its tokens are copied and it is left alone.
            chosen = self._least_worth([slot for slot in idle if slot is not best])
        else:
            chosen = best
        source = best if reused and best is not chosen else None
        self._clock += 1
        chosen.key, chosen.tokens = key, list(prompt[:reused])
        chosen.taken, chosen.last_used = True, self._clock
        return Grant(chosen, reused, source)

    def release(self, slot: Slot, *, broken: bool = False) -> None:
        """Take a slot back; what it holds stays of use, unless a step failed while it was written."""
        slot.taken = False
        if broken:
            slot.tokens = []

    def forget(self) -> None:
        """Nothing that was computed so far is reused."""
        for slot in self._slots:
            slot.tokens = []

    def _least_worth(self, idle: Sequence[Slot]) -> Slot:
        """An empty slot, the lowest first, so that running ones lie side by side; else the one unused for longest."""
        return min(idle, key=lambda slot: (bool(slot.tokens), slot.last_used, slot.number))

    def _common(self, slot: Slot, key: Key, prompt: Sequence[int]) -> int:
        """How many tokens at the beginning of `prompt` the slot holds."""
        limit = min(len(slot.tokens), len(prompt) - 1)
        if slot.key != key or limit < WORTH:
            return 0
        differs = np.asarray(slot.tokens[:limit]) != np.asarray(prompt[:limit])
        return int(differs.argmax()) if differs.any() else limit
