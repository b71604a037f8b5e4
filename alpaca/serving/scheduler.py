"""What the next step computes: a token for every answer that decodes, perhaps guesses, and a chunk of prompts."""

from __future__ import annotations

from collections.abc import Sequence as Several
from dataclasses import dataclass, field

from alpaca.serving.draft import shared
from alpaca.serving.sequence import Sequence

CHUNK = {"cpu": 128, "cuda": 512}
"""Prompt tokens a step may hold: more are faster in sum, and let running answers and newcomers wait for longer."""


@dataclass
class Scheduler:
    """Short prompts first, so that a long one delays nobody; one that was passed over moves up with every step."""

    chunk: int
    rows: int = 0
    """Up to so many rows in sum, a step is filled with guesses."""
    _passed: dict[Sequence, int] = field(default_factory=dict)

    def next_step(self, running: Several[Sequence]) -> list[tuple[Sequence, int]]:
        """Which answers take part, and with how many tokens; beyond those that remain, they are guesses."""
        decoding = [answer for answer in running if answer.remaining == 1]
        prompts = [answer for answer in running if answer.remaining > 1]
        prompts.sort(key=lambda answer: answer.remaining - self.chunk * self._passed.get(answer, 0))
        taken = self._fill(prompts)
        chosen = {answer for answer, _ in taken}
        self._passed = {answer: self._passed.get(answer, 0) + 1 for answer in prompts if answer not in chosen}
        room = max(0, self.rows - len(decoding) - sum(count for _, count in taken))
        guesses = shared([len(answer.guess(room)) for answer in decoding], room)
        return [(answer, 1 + count) for answer, count in zip(decoding, guesses, strict=True)] + taken

    def _fill(self, prompts: Several[Sequence]) -> list[tuple[Sequence, int]]:
        """Whole prompts as long as they fit; where the first doesn't, a chunk of it. Who ends first gets no company
        that doesn't end with it, because that would only make its first token later."""
        taken: list[tuple[Sequence, int]] = []
        left = self.chunk
        for answer in prompts:
            if answer.remaining <= left:
                taken.append((answer, answer.remaining))
                left -= answer.remaining
            elif not taken:
                return [(answer, left)]
        return taken
