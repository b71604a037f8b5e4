"""One request on its way: its turn in the queue, its answer piece by piece, and what became of it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from alpaca.gateway.asked import Asked
from alpaca.gateway.caller import Caller
from alpaca.gateway.pool import Pool
from alpaca.gateway.queue import Queue
from alpaca.gateway.refusals import BROKEN, SERVER, Refused, code_of, of_upstream
from alpaca.gateway.served import Model
from alpaca.gateway.upstream import Broken, Busy, Upstream

BETWEEN_ANSWERS = "\n\n"  # what our server puts before every answer but the first
BUSY_PAUSES = (0.05, 0.1, 0.2, 0.4)  # seconds, then the last again
FIGURES = ("seed", "queue_time", "time_to_first_token", "tokens_per_second", "batch_size")
Piece = tuple[int, str]
"""The number of an answer, and text of it."""


class Call:
    """One request for an answer. `pieces` is read once; what else it holds is there when that is at its end."""

    def __init__(self, asked: Asked, model: Model, caller: Caller) -> None:
        self.asked = asked
        self.model = model
        self.caller = caller
        self.came = time.monotonic()
        self.created = int(time.time())
        self.position = 0
        """Requests that waited when it came; 0: it was served at once."""
        self.waited = 0.0
        """Seconds in the queue."""
        self.first: float | None = None
        """Seconds to the first text."""
        self.metrics: dict[str, Any] = {}
        """What the server says of the answer."""

    async def pieces(self, pool: Pool, queue: Queue) -> AsyncIterator[list[Piece]]:
        """The text as it comes; what came together is handed on together, which spares work where many are answered.
        A server that breaks off before any text has another one take over, once; one that has no place after all is
        asked until it has. Raises Refused."""
        failed: list[Upstream] = []
        while True:
            if not pool.having(self.asked.model):
                raise pool.nobody()

            def able() -> list[Upstream]:
                return [upstream for upstream in pool.having(self.asked.model) if upstream not in failed]

            affinity = f"{self.caller.name} {self.model.root}"
            async with queue.turn(self.caller.name, able, weight=self.asked.n, affinity=affinity) as turn:
                self.position = self.position or turn.position
                self.waited += turn.waited
                try:
                    async with aclosing(self._from(turn.upstream)) as answer:  # type: ignore[type-var]
                        async for together in answer:
                            if self.first is None:
                                self.first = time.monotonic() - self.came
                            yield together
                    return
                except Broken as error:
                    failed.append(turn.upstream)
                    if self.first is not None:
                        raise Refused(502, f"the server broke off: {error}", kind=SERVER) from None
            if len(failed) > 1 or not able():
                raise pool.nobody() if not pool.well else Refused(
                    503, "the server broke off before the answer began, and there is no other", kind=SERVER,
                    retry_after=2,
                )  # fmt: skip

    async def _from(self, upstream: Upstream) -> AsyncIterator[list[Piece]]:
        assert upstream.served is not None
        model = upstream.served.find(self.asked.model)
        if model is None:  # it was restarted with others
            raise Broken("it does not have the model any more")
        inputs = upstream.served.cog_inputs(self.asked, model)
        tries = 0
        while True:
            try:
                async with aclosing(self._answers(upstream, inputs)) as answer:  # type: ignore[type-var]
                    async for together in answer:
                        yield together
                return
            except Busy:  # a place is free a moment after its answer was sent
                await asyncio.sleep(BUSY_PAUSES[min(tries, len(BUSY_PAUSES) - 1)])
                tries += 1

    async def _answers(self, upstream: Upstream, inputs: dict[str, Any]) -> AsyncIterator[list[Piece]]:
        """One prediction. Raises Busy, Broken, or Refused with what the server says is wrong."""
        several, index = self.asked.n > 1, 0
        async with aclosing(upstream.events(inputs)) as events:  # type: ignore[type-var]
            async for together in events:
                pieces: list[Piece] = []
                for name, data in together:
                    if name == "output":
                        text = "" if (chunk := data.get("chunk")) is None else str(chunk)
                        pieces.append((index, text.removeprefix(BETWEEN_ANSWERS) if index else text))
                        index += several
                    elif name == "completed":
                        if pieces:
                            yield pieces
                            pieces = []
                        self._end(data)
                if pieces:
                    yield pieces

    def _end(self, data: dict[str, Any]) -> None:
        status, error = data.get("status"), str(data.get("error") or "")
        if status == "canceled" or code_of(error) in BROKEN:
            raise Broken(error or "it ended the prediction")
        if status != "succeeded":
            raise of_upstream(error)
        metrics = data.get("metrics")
        self.metrics = metrics if isinstance(metrics, dict) else {}

    # --- what became of it ---
    def finish(self, index: int) -> str:
        """Why an answer ended: stop or length."""
        reasons = str(self.metrics.get("finish_reason") or "stop").split(",")
        return reasons[min(index, len(reasons) - 1)]

    @property
    def usage(self) -> dict[str, int] | None:
        """Tokens, where the server counts them."""
        read, written = self.metrics.get("input_token_count"), self.metrics.get("output_token_count")
        if not isinstance(read, int) or not isinstance(written, int) or read < 0 or written < 0:
            return None
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    @property
    def figures(self) -> dict[str, float]:
        """What the server says of this answer beside OpenAI's own fields, as far as these are numbers."""
        found = {name: self.metrics.get(name) for name in FIGURES}
        return {name: value for name, value in found.items() if isinstance(value, int | float) and math.isfinite(value)}
