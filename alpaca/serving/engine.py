"""The engine: requests go in, streams of chunks come out, and one thread owns the model.

Every step computes one token for each answer that decodes, or several where they could be guessed, and a chunk of the
prompts that wait, in one forward pass. Answers join and leave between steps. What can be wrong with a request is found
before, in alpaca/serving/admission.py.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import torch

from alpaca.cancellation import NEVER, Cancellation
from alpaca.errors import AlpacaError, EngineStopped, GenerationFailed, NoTurn
from alpaca.prompts.template import Template
from alpaca.serving.adapters import AdapterStore
from alpaca.serving.admission import Admission
from alpaca.serving.cache import CachePlan, KeyValueCache
from alpaca.serving.decoder import Decoder
from alpaca.serving.default import DefaultAdapter
from alpaca.serving.description import Description, Rendered
from alpaca.serving.draft import ROWS, ROWS_OF_FEW_BITS, check
from alpaca.serving.graphs import open_graphs
from alpaca.serving.lora import LoraStack
from alpaca.serving.placement import Placement
from alpaca.serving.reader import AdapterReader
from alpaca.serving.request import GenerationRequest
from alpaca.serving.scheduler import CHUNK, Scheduler
from alpaca.serving.sequence import Job, Sequence
from alpaca.serving.slots import Moves, Slots
from alpaca.serving.step import Parts, build_step
from alpaca.serving.stream import FinishReason, Stream


@dataclass(frozen=True)
class Stats:
    """What the engine has done since its start. `finished` counts answers by how they ended."""

    submitted: int
    """Requests."""
    waiting: int
    """Answers that have no slot yet."""
    running: int
    """Answers that have one."""
    finished: dict[FinishReason, int]
    steps: int
    replayed: int
    """Those of fixed shapes (alpaca/serving/graphs.py)."""
    guessed: int
    """Tokens that were guessed before they were chosen."""
    right: int
    """Guesses that were chosen then."""
    adapters: int
    """Adapters in memory."""
    pinned: int
    """Those in use."""
    loads: int
    """How often one was copied into memory."""


class Engine:
    """Answers many requests at once, each with its own adapter and settings."""

    def __init__(
        self,
        decoder: Decoder,
        plan: CachePlan,
        tokenizer: Any,
        template: Template,
        *,
        adapters: AdapterStore,
        default: DefaultAdapter | None = None,
        eos_ids: tuple[int, ...],
        separate: bool = False,
        drafts: bool = True,
        patience: float | None = None,
        graphs: bool | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        """`template` and `default` (an adapter) are for requests that name none. `separate`: what was computed for one
        request is not used for another. `drafts`: next tokens are guessed. `patience`: seconds that a request waits for
        its turn; None is for ever. `graphs`: as for open_graphs."""
        self._decoder = decoder
        self._cache = KeyValueCache(decoder.model.config, plan, decoder.dtype, decoder.device)
        self._graphs = open_graphs(decoder, self._cache, plan.places, graphs, say)
        self._slots = Slots(plan.places, plan.tokens)
        self._stack = LoraStack(decoder.projections, decoder.columns)
        self._admission = Admission(
            tokenizer=tokenizer,
            template=template,
            adapters=adapters,
            default=default,
            eos_ids=eos_ids,
            context=plan.context,
            vocabulary=len(decoder.embedding),
            stack=self._stack,
            separate=separate,
        )
        self._patience = patience
        rows = ROWS_OF_FEW_BITS if decoder.bits else ROWS[decoder.device.type]
        self._scheduler = Scheduler(CHUNK[decoder.device.type], rows if drafts else 0)
        self._inbox: SimpleQueue[Job | None] = SimpleQueue()
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._reader = AdapterReader(self._stack, self._wake, say)
        self._placement = Placement(self._stack, self._reader)
        self._lock = threading.Lock()
        self._submitted = 0
        self._steps = self._guessed = self._right = 0
        self._finished: Counter[FinishReason] = Counter()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    # --- any thread ---
    def submit(self, request: GenerationRequest, cancellation: Cancellation = NEVER) -> Stream:
        """Check the request and queue it. Raises what Admission.admit raises, or EngineStopped.

        `cancellation` ends the wait for an adapter; from then on, closing the stream cancels.
        """
        job = self._admission.admit(request, cancellation)
        with self._lock:
            if self._closing or not self._thread.is_alive():
                raise EngineStopped("the engine has stopped; restart the server")
            self._submitted += 1
            self._inbox.put(job)
        return job.stream

    def render(self, request: GenerationRequest, cancellation: Cancellation = NEVER) -> Rendered:
        """The prompt that the base would be given. Raises what `submit` does."""
        prompt = self._admission.admit(request, cancellation).prompt
        return Rendered(self._admission.text(prompt), len(prompt))

    def describe(self) -> Description:
        """What is served here; adapters that can't be are left out."""
        return self._admission.describe(answers=self._slots.count)

    def stats(self) -> Stats:
        with self._lock:
            return Stats(
                submitted=self._submitted,
                waiting=len(self._waiting) + self._inbox.qsize(),
                running=len(self._running),
                finished=dict(self._finished),
                steps=self._steps,
                replayed=self._graphs.replayed if self._graphs else 0,
                guessed=self._guessed,
                right=self._right,
                adapters=len(self._stack),
                pinned=self._stack.pinned,
                loads=self._stack.loaded,
            )

    @property
    def alive(self) -> bool:
        """False once requests can't be answered any more."""
        return self._thread.is_alive() and not self._closing

    def close(self) -> None:
        """Cancel everything and end the thread."""
        with self._lock:
            self._closing = True
        self._wake()
        self._thread.join()
        self._reader.close()

    def _wake(self) -> None:
        self._inbox.put(None)

    # --- the engine's thread ---
    def _work(self) -> None:
        try:
            with torch.inference_mode():
                while not self._closing:
                    self._receive(wait=False)
                    self._drop_cancelled()
                    self._admit()
                    self._drop_overdue()
                    if self._running:
                        self._step()
                    else:  # whoever waits now waits for a file to be read, which wakes us
                        self._receive(wait=True)
        except BaseException:
            self._end_all(EngineStopped("the engine failed; restart the server"))
            raise
        self._end_all(None)

    def _receive(self, *, wait: bool) -> None:
        """Take in what was submitted; with nothing to do, sleep until something comes (None only wakes)."""
        while wait or not self._inbox.empty():
            job = self._inbox.get()
            wait = False
            if job is not None:
                with self._lock:
                    self._waiting += job.answers

    def _drop_cancelled(self) -> None:
        for answer in [*self._running, *self._waiting]:
            if answer.job.stream.cancelled:
                self._finish(answer, FinishReason.CANCELLED)

    def _admit(self) -> None:
        """Give waiting answers slots, in their order, as long as there is room: nobody goes past one for whom there is
        too little.

        The first whose adapters are not all in memory waits for them, and holds none. Meanwhile those behind it that
        need no adapter, or whose adapters are there, go past, unless it would have to wait longer for their sake.
        """
        self._placement.keep_for(self._waiting)
        first: Sequence | None = None
        for answer in list(self._waiting):
            if answer.job.over or answer.waits_for_sibling:  # it may have failed while its sibling was looked at
                continue
            if not self._slots.fits(answer.longest):
                return
            try:
                if not answer.job.adapters or self._placement.place(answer, first, self._running):
                    self._start(answer)
                else:
                    first = first or answer
            except Exception as error:
                self._fail(answer.job, error)

    def _drop_overdue(self) -> None:
        """Refuse who has waited for a turn for too long. A request whose turn has come, of n answers or for an adapter
        that there is no room for, is none of them."""
        now = time.perf_counter()
        for answer in list(self._waiting):
            job = answer.job
            if self._patience is None or now - job.submitted <= self._patience:
                return
            if not (job.over or job.begun):
                counts = f"answers being made: {len(self._running)}, waiting: {len(self._waiting)}"
                self._fail(job, NoTurn(f"no turn came within {self._patience:g} s ({counts}); ask again later"))

    def _start(self, answer: Sequence) -> None:
        grant = self._slots.take(answer.job.key, answer.tokens, answer.longest)
        assert grant is not None, "there was room"
        answer.begin(grant)
        self._move(grant.moves)
        if grant.source is not None:
            self._cache.copy(grant.source, grant.slot.start, grant.reused)
        self._cache.begin(grant.slot.start, grant.slot.size, grant.reused)
        with self._lock:
            self._waiting.remove(answer)
            self._running.append(answer)

    def _move(self, moves: Moves) -> None:
        """Push running answers together. Should that fail, none of them is where it should be, and all fail."""
        try:
            for source, slot in moves:
                self._cache.move(source, slot.start, len(slot.tokens), slot.size)
        except Exception as error:
            for source, slot in moves:
                self._cache.end(source, len(slot.tokens))
            for job in {answer.job: None for answer in self._running}:
                self._fail(job, error)
            raise

    def _step(self) -> None:
        """Schedule, run, postprocess; should the run fail, those who took part fail, and nobody else."""
        parts = self._scheduler.next_step(self._running)
        try:
            chosen = self._run(parts)
        except Exception as error:
            self._fail_step(parts, error)
            return
        self._steps += 1
        for answer, guessed, tokens in chosen:
            self._guessed += guessed
            self._right += len(tokens) - 1
            answer.take(tokens, guessed, len(chosen))
            if answer.finish is not None:
                self._finish(answer, answer.finish)

    def _run(self, parts: Parts) -> list[tuple[Sequence, int, list[int]]]:
        """One forward pass: every answer whose tokens are all computed by now, how many of its next ones were guessed,
        and what these are: guesses that were right and one more."""
        ordered, logits = parts, self._graphs.forward(parts) if self._graphs else None
        if logits is None:
            step, ordered = build_step(parts, self._decoder)
            logits = self._decoder.forward(step, self._cache)
        drafts = [answer.guess(count - answer.remaining) for answer, count in ordered if count >= answer.remaining]
        for answer, count in ordered:
            answer.advance(min(count, answer.remaining))
        ready = [answer for answer, _ in ordered if not answer.remaining]
        tokens = check(logits, [answer.sampler for answer in ready], drafts)
        return list(zip(ready, map(len, drafts), tokens, strict=True))

    # --- how answers end ---
    def _finish(self, answer: Sequence, reason: FinishReason) -> None:
        """The one terminal chunk of an answer; after the request's last one, its stream ends."""
        self._give_back(answer)
        chunk = answer.last_chunk(reason)
        with self._lock:
            self._finished[reason] += 1
        answer.job.stream.put(chunk)
        if all(other.finish is not None for other in answer.job.answers):
            answer.job.end()

    def _fail(self, job: Job, error: Exception) -> None:
        """End a request with an error, unless it is over; nothing its answers computed is reused."""
        if job.over:
            return
        readable = _readable(error)
        for answer in job.answers:
            if answer.finish is None:
                self._give_back(answer, broken=True)
                answer.finish = FinishReason.FAILED
                with self._lock:
                    self._finished[FinishReason.FAILED] += 1
        job.end(readable)

    def _fail_step(self, parts: Parts, error: Exception) -> None:
        """End the requests that took part in a step that failed."""
        for job in {answer.job: None for answer, _ in parts}:
            self._fail(job, error)
        if self._decoder.device.type == "cuda":
            torch.cuda.empty_cache()

    def _give_back(self, answer: Sequence, *, broken: bool = False) -> None:
        """Free what an answer holds: its slot and its pins on the adapters."""
        with self._lock:
            for group in (self._running, self._waiting):
                with contextlib.suppress(ValueError):
                    group.remove(answer)
        if answer.slot is not None:
            self._cache.end(answer.slot.start, len(answer.tokens))
            self._slots.release(answer.slot, broken=broken)
            answer.slot = None
        self._placement.give_back(answer)

    def _end_all(self, failure: EngineStopped | None) -> None:
        """The engine stops: what runs is cancelled, or fails with `failure`; what waits is refused."""
        with self._lock:  # after this, submit() lets nothing in
            self._closing = True
        self._receive(wait=False)
        for answer in list(self._running):
            if answer.job.over:
                continue
            if failure is None:
                self._finish(answer, FinishReason.CANCELLED)
            else:
                self._fail(answer.job, failure)
        for answer in list(self._waiting):
            if not answer.job.over:
                self._fail(answer.job, EngineStopped("the engine was stopped before this request's turn"))


def _readable(error: Exception) -> AlpacaError:
    """What the reader of a stream gets for `error`: always an error with a code."""
    if isinstance(error, AlpacaError):
        return error
    traceback.print_exception(error, file=sys.stderr)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "out of memory" in reason.lower() or "can't allocate" in reason.lower() or isinstance(error, MemoryError):
        reason = f"out of memory; a shorter prompt, fewer max_tokens or a smaller precision may fit ({reason})"
    return GenerationFailed(reason)
