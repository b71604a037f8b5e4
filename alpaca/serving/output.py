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
        self._usages: list[Usage] = []
        self._reasons: list[str] = []

    def pieces(self) -> Iterator[str]:
        """One answer comes piece by piece; of several, each comes whole, all but the first after a blank line."""
        answers = [""] * self._n
        for chunk in self._chunks:
            if self._n == 1 and chunk.text:
                yield chunk.text
            answers[chunk.index] += chunk.text
            if chunk.usage is not None and chunk.finish is not None:
                self._usages.append(chunk.usage)
                self._reasons.append(chunk.finish.value)
                if self._n > 1:
                    yield (BETWEEN_ANSWERS if chunk.index else "") + answers[chunk.index]

    def metrics(self) -> dict[str, Any]:
        """Counts in tokens, times in seconds; complete once the pieces are read. The seed is the first answer's."""
        if not self._usages:
            return {}
        tokens = sum(usage.output_tokens for usage in self._usages)
        total = max(usage.total for usage in self._usages)
        first = [usage.first_token for usage in self._usages if usage.first_token is not None]
        return {
            "input_token_count": self._usages[0].input_tokens,
            "output_token_count": tokens,
            "time_to_first_token": round(min(first, default=total), 4),
            "tokens_per_second": round(tokens / total, 2) if total > 0 else 0.0,
            "finish_reason": ",".join(self._reasons),
            "seed": self._usages[0].seed,
        }
