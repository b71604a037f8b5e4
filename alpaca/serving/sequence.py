"""One answer in the making, and the request it belongs to."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from alpaca.serving.adapters import Adapter
from alpaca.serving.draft import Drafter
from alpaca.serving.lora import Place
from alpaca.serving.request import GenerationRequest
from alpaca.serving.sampling import Sampler
from alpaca.serving.slots import Grant, Key, Slot
from alpaca.serving.stream import Chunk, FinishReason, Stream, Usage
from alpaca.serving.text import TextStream

Used = tuple[Adapter, float]
"""An adapter and its strength."""


@dataclass(eq=False)
class Job:
    """A request that was admitted: checked, encoded, and not over until each of its answers is."""

    request: GenerationRequest
    adapters: tuple[Used, ...]
    """Those that change the answer."""
    prompt: list[int]
    max_tokens: int
    scope: str = ""
    """Requests of one scope reuse what was computed for each other."""
    stream: Stream = field(default_factory=Stream)
    answers: list[Sequence] = field(default_factory=list)
    submitted: float = field(default_factory=time.perf_counter)
    over: bool = False
    """The stream has ended."""

    def end(self, error: Exception | None = None) -> None:
        """Nothing more of it is made. Its adapters' files may go from the cache at once: a job and its answers refer to
        each other, and would keep them in use until Python looks for such circles, which may take long."""
        self.over, self.adapters = True, ()
        self.stream.end(error)

    @property
    def begun(self) -> bool:
        """Whether its turn has come: an answer has a slot, or waits for its adapter alone."""
        return any(answer.started or answer.blocked for answer in self.answers)

    @property
    def key(self) -> Key:
        """What the keys and values of its tokens depend on, besides the tokens, and who may use them."""
        return tuple(sorted((adapter.digest, scale) for adapter, scale in self.adapters)), self.scope


@dataclass(eq=False)
class Sequence:
    """Answer number `index`: its tokens, how far they are computed, and what it holds while it runs."""

    job: Job
    index: int
    sampler: Sampler
    text: TextStream
    eos_ids: frozenset[int]
    tokens: list[int]
    """The prompt and the answer so far."""
    computed: int = 0
    """So many of them are in the cache."""
    slot: Slot | None = None
    places: tuple[tuple[Place, float], ...] = ()
    """Where its adapters lie, each with its strength."""
    blocked: float | None = None
    """Since when others have used too much of the room for its adapters."""
    started: float | None = None
    first_token: float | None = None
    said: int = 0
    """Tokens of the answer; its end token is none of them."""
    reused: int = 0
    steps: int = 0
    rows: int = 0
    """Sum over its decoding steps of the answers that decoded together."""
    finish: FinishReason | None = None
    drafter: Drafter = field(init=False)

    def __post_init__(self) -> None:
        self.drafter = Drafter(self.tokens)

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next one can be chosen: 1 while decoding."""
        return len(self.tokens) - self.computed

    @property
    def longest(self) -> int:
        """Tokens it may still take: of the prompt to be computed, and of the answer to be made."""
        return self.remaining + self.job.max_tokens - self.said

    @property
    def prefilled(self) -> bool:
        """Whether the whole prompt is in the cache."""
        return self.computed >= len(self.job.prompt)

    @property
    def waits_for_sibling(self) -> bool:
        """Whether the request's first answer is still computing the prompt, which it does for all of them."""
        first = self.job.answers[0]
        return self is not first and not first.prefilled and first.finish is None

    def begin(self, grant: Grant) -> None:
        """Take a slot, and with it what it remembers of the prompt."""
        self.slot, self.computed, self.reused = grant.slot, grant.reused, grant.reused
        self.started = time.perf_counter()

    def guess(self, longest: int) -> list[int]:
        """Up to `longest` tokens that may come next, none of them beyond max_tokens, or beyond the slot's room."""
        return self.drafter.guess(min(longest, self.job.max_tokens - self.said - 1))

    def upcoming(self, count: int) -> list[int]:
        """The next `count` tokens to compute: those that are known, then guesses."""
        known = self.tokens[self.computed : self.computed + count]
        return known + self.guess(count - len(known))

    def advance(self, count: int) -> None:
        """The keys and values of `count` more tokens are in the cache."""
        assert self.slot is not None
        self.slot.tokens += self.tokens[self.computed : self.computed + count]
        self.computed += count

    def take(self, tokens: list[int], guessed: int, batch: int) -> None:
        """Go on with what a step gave, its right guesses and one token more, as if each had come by itself.

        `guessed`: how many the step checked; `batch`: how many answers it gave tokens to.
        """
        if self.first_token is None:
            self.first_token = time.perf_counter()
        self.steps += 1
        self.rows += batch
        for token in tokens:
            self._accept(token)
            if self.finish is not None:
                break
        new = self.tokens[self.computed :]
        right = min(len(new), len(tokens) - 1)
        self.advance(right)
        self.drafter.learn(new, guessed, right)

    def _accept(self, token: int) -> None:
        """Take the next token, stream its text, and note how the answer ends, if it does."""
        if token in self.eos_ids:
            self.finish = FinishReason.STOP
            return
        self.tokens.append(token)
        self.said += 1
        if text := self.text.push(token):
            self.job.stream.put(Chunk(text, self.index))
        if self.text.stopped:
            self.finish = FinishReason.STOP
        elif self.said >= self.job.max_tokens:
            self.finish = FinishReason.LENGTH

    def last_chunk(self, reason: FinishReason) -> Chunk:
        """The terminal chunk: text that was held back, and what the answer took."""
        self.finish = reason
        now, since = time.perf_counter(), self.job.submitted
        usage = Usage(
            input_tokens=len(self.job.prompt),
            output_tokens=self.said,
            reused_tokens=self.reused,
            queued=(now if self.started is None else self.started) - since,
            first_token=None if self.first_token is None else self.first_token - since,
            total=now - since,
            batch_size=self.rows / self.steps if self.steps else 0.0,
            seed=self.sampler.seed,
        )
        return Chunk(self.text.finish(), self.index, reason, usage)
