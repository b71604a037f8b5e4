"""What a client gets of a stream of chunks: pieces of text, and figures about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from alpaca.serving.stream import Chunk, Usage

BETWEEN_ANSWERS = "\n\n"  # so that several answers, joined, can still be read


class Output:
    """Passes the chunks of `n` answers on as text and keeps count."""

    def __init__(self, chunks: Iterable[Chunk], n: int) -> None:
        self._chunks = chunks
        self._n = n
        self._ended: dict[int, Chunk] = {}

    def pieces(self) -> Iterator[str]:
        """One answer comes piece by piece; of several, each comes whole and in order, parted by blank lines."""
        answers = [""] * self._n
        sent = 0
        for chunk in self._chunks:
            if self._n == 1 and chunk.text:
                yield chunk.text
            answers[chunk.index] += chunk.text
            if chunk.finish is not None:
                self._ended[chunk.index] = chunk
            while self._n > 1 and sent in self._ended:
                yield (BETWEEN_ANSWERS if sent else "") + answers[sent]
                sent += 1

    def metrics(self) -> dict[str, Any]:
        """Counts in tokens, times in seconds; complete once the pieces are read. The seed is the first answer's.

        How much of the prompt was computed before is not told: to a client that guesses another one's prompt, it would
        say how much of the guess is right.
        """
        if len(self._ended) < self._n:
            return {}
        usages = self._usages()
        tokens = sum(usage.output_tokens for usage in usages)
        total = max(usage.total for usage in usages)
        first = [usage.first_token for usage in usages if usage.first_token is not None]
        return {
            "input_token_count": usages[0].input_tokens,
            "output_token_count": tokens,
            "queue_time": round(usages[0].queued, 4),
            "time_to_first_token": round(min(first, default=total), 4),
            "tokens_per_second": round(tokens / total, 2) if total > 0 else 0.0,
            "batch_size": round(max(usage.batch_size for usage in usages), 2),
            "finish_reason": ",".join(self._ended[n].finish or "" for n in range(self._n)),
            "seed": usages[0].seed,
        }

    def summary(self) -> str:
        """One line for the log."""
        figures = self.metrics()
        return ", ".join(f"{name} {value}" for name, value in figures.items())

    def _usages(self) -> list[Usage]:
        return [chunk.usage for _, chunk in sorted(self._ended.items()) if chunk.usage is not None]
