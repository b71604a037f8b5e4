"""Where the engine looks on while generate() works: after every token it streams text and says whether to go on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import StoppingCriteria

from alpaca.serving.stream import Chunk, FinishReason, Stream
from alpaca.serving.text import TextStream


class Tap(StoppingCriteria):
    """Streams one answer, and stops it at its end, at a stop string, or when the reader has left."""

    def __init__(self, stream: Stream, text: TextStream, index: int, eos_ids: Sequence[int]) -> None:
        self.text = text
        self.tokens = 0
        """Tokens of the answer so far, its end token not counted."""
        self.first_token: float | None = None
        """time.perf_counter() at the first token."""
        self._stream = stream
        self._index = index
        self._eos_ids = frozenset(eos_ids)
        self._ended = False

    @property
    def reason(self) -> FinishReason:
        """Why the answer ended, once generate() has returned."""
        if self._ended or self.text.stopped:
            return FinishReason.STOP
        return FinishReason.CANCELLED if self._stream.cancelled else FinishReason.LENGTH

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> Any:
        """`input_ids`: [1, prompt and answer so far]; returns a bool of shape [1], True to stop."""
        if not self._ended and not self.text.stopped:
            self._take(int(input_ids[0, -1]))
        over = self._ended or self.text.stopped or self._stream.cancelled
        return torch.full((input_ids.shape[0],), over, device=input_ids.device, dtype=torch.bool)

    def _take(self, token_id: int) -> None:
        if self.first_token is None:
            self.first_token = time.perf_counter()
        if token_id in self._eos_ids:
            self._ended = True
            return
        self.tokens += 1
        if text := self.text.push(token_id):
            self._stream.put(Chunk(text, self._index))
