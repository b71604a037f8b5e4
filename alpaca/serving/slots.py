"""One pool of tokens: which answer has which range of it, and which tokens the ranges given back still remember.

    0        slot           slot      slot                                  total
    |▓▓▓▓▓▓▓▓░░░|▒▒▒▒▒▒▒▒▒|▓▓▓▓▓░░░░░|▒▒▒▒▒|                                |
      running     remembered  running   remembered   never used, or forgotten

An answer takes a slot, a range with room for its prompt and for all tokens it may have, and gives it back when it ends.
What it computed is remembered until somebody else needs the room.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

BLOCK = 64  # tokens; slots begin and end at multiples of it, so that those of similar answers are equally long
WORTH = 8  # tokens; a shorter common beginning isn't looked for

Key = tuple[tuple[tuple[str, float], ...], str]
"""What makes keys and values valid for a request: the content hashes of its adapters, each with its strength, in the
order of the hashes, and the scope of those who may use them; without any adapter it is the base."""
BASE: Key = ((), "")


@dataclass(eq=False)
class Slot:
    """The range start … end of the pool. It holds the keys and values of `tokens`, computed under `key`."""

    start: int
    size: int
    key: Key = BASE
    tokens: list[int] = field(default_factory=list)
    taken: bool = True
    last_used: int = 0

    @property
    def end(self) -> int:
        return self.start + self.size


Moves = tuple[tuple[int, Slot], ...]
"""Slots of running answers that moved, in order: where each began before, and the slot as it is now."""


@dataclass(frozen=True)
class Grant:
    """A slot, and what to do with the memory before it is used: first `moves`, then the copy from `source`."""

    slot: Slot
    reused: int
    """Tokens at its beginning that need not be computed again."""
    source: int | None
    """Where in the pool these are to be copied from; None where they lie in the slot already, or there are none."""
    moves: Moves = ()


class Slots:
    """Hands out at most `count` slots of a pool of `total` tokens, a multiple of BLOCK."""

    def __init__(self, count: int, total: int) -> None:
        self.count = count
        self._total = total
        self._slots: list[Slot] = []  # taken and remembered ones, by rising start
        self._clock = 0

    @property
    def free(self) -> int:
        """How many more answers may have a slot."""
        return self.count - sum(slot.taken for slot in self._slots)

    def fits(self, length: int) -> bool:
        """Whether there is room for an answer of `length` tokens, the prompt included."""
        taken = sum(slot.size for slot in self._slots if slot.taken)
        return self.free > 0 and taken + in_blocks(length) <= self._total

    def take(self, key: Key, prompt: Sequence[int], length: int) -> Grant | None:
        """A slot for `prompt` that grows to `length` tokens, or None where there is no room.

        At least the prompt's last token is left to compute.
        """
        if not self.fits(length):
            return None
        size = in_blocks(length)
        self._clock += 1
        best, reused = self._remembering(key, prompt)
        if best is not None and not best.taken:
            # With much more in it than this prompt uses it is worth keeping; else the new slot holds all that it does.
            best.last_used = self._clock if len(best.tokens) > 2 * reused else 0
        moves: Moves = ()
        start = self._window(size, best)
        if start is None:
            start, moves = self._push_together()
            if best is not None and not best.taken:
                best, reused = None, 0  # forgotten
        source = best.start if best is not None and best.start != start else None
        slot = Slot(start, size, key, list(prompt[:reused]), last_used=self._clock)
        lost = [other for other in self._slots if other.start < slot.end and slot.start < other.end]
        assert not any(other.taken for other in lost), "a window holds no running answer"
        self._slots = sorted([*(o for o in self._slots if o not in lost), slot], key=lambda other: other.start)
        return Grant(slot, reused, source, moves)

    def release(self, slot: Slot, *, broken: bool = False) -> None:
        """Take a slot back; what it holds stays of use, unless a step failed while it was written."""
        slot.taken = False
        slot.size = in_blocks(len(slot.tokens))
        if broken or len(slot.tokens) < WORTH:
            self._slots.remove(slot)

    # --- what is remembered ---
    def _remembering(self, key: Key, prompt: Sequence[int]) -> tuple[Slot | None, int]:
        """The slot that holds most of the prompt's beginning, an idle one before a running one, and how much."""
        best, most = None, WORTH - 1
        prompt = list(prompt)
        for slot in sorted(self._slots, key=lambda slot: slot.taken):
            if slot.key == key and (common := _common(slot.tokens, prompt, most)):
                best, most = slot, common
        return best, most if best is not None else 0

    # --- room ---
    def _window(self, size: int, best: Slot | None) -> int | None:
        """Where `size` tokens lie between running answers, so that what is forgotten for them was last used longest
        ago; of several such places one where `best` need not be copied, then the lowest."""
        found: tuple[int, bool, int] | None = None
        for begin, end, idle in self._stretches():
            starts = [(begin, 0), *((slot.end, number) for number, slot in enumerate(idle, 1))]
            starts += [(slot.start, number) for number, slot in enumerate(idle) if slot is best]
            for start, first in starts:
                if start + size > end:
                    continue
                lost = 0
                for slot in idle[first:]:
                    if slot.start >= start + size or (found is not None and lost > found[0]):
                        break
                    lost = max(lost, slot.last_used)
                rating = lost, best is None or start != best.start, start
                found = rating if found is None else min(found, rating)
        return None if found is None else found[2]

    def _stretches(self) -> Iterator[tuple[int, int, list[Slot]]]:
        """What lies between running answers: from where to where, and the remembered slots in it."""
        begin, idle = 0, list[Slot]()
        for slot in self._slots:
            if slot.taken:
                yield begin, slot.start, idle
                begin, idle = slot.end, []
            else:
                idle.append(slot)
        yield begin, self._total, idle

    def _push_together(self) -> tuple[int, Moves]:
        """Move running answers to the beginning of the pool and forget all else: where the rest begins, and who
        moved. It is needed only where there is room in sum and nowhere in one piece."""
        self._slots = [slot for slot in self._slots if slot.taken]
        end, moves = 0, []
        for slot in self._slots:
            if slot.start != end:
                moves.append((slot.start, slot))
                slot.start = end
            end = slot.end
        return end, tuple(moves)


def in_blocks(length: int) -> int:
    """`length` rounded up to whole blocks."""
    return -(-length // BLOCK) * BLOCK


def _common(tokens: list[int], prompt: list[int], most: int) -> int:
    """How many of the first `tokens` are the first of `prompt`, whose last does not count; 0 if not above `most`."""
    limit = min(len(tokens), len(prompt) - 1)
    if limit <= most or tokens[most] != prompt[most] or tokens[:most] != prompt[:most]:
        return 0
    differs = np.asarray(tokens[:limit]) != np.asarray(prompt[:limit])
    return int(differs.argmax()) if differs.any() else limit
