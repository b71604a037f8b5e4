"""The engine: requests go in, streams of chunks come out, and one thread owns the model.

Every step computes one token for each answer that decodes and a chunk of the prompts that wait, in one forward pass.
Answers join and leave between steps. What can be wrong with a request is found before, in alpaca/serving/admission.py.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import torch

from alpaca.adapter.folder import changed_modules, load_tensors
from alpaca.errors import AlpacaError, EngineStopped, GenerationFailed, NoRoom
from alpaca.prompts.template import Template
from alpaca.serving.adapters import Adapter, AdapterStore
from alpaca.serving.admission import Admission
from alpaca.serving.cache import CachePlan, KeyValueCache
from alpaca.serving.decoder import Decoder
from alpaca.serving.lora import LoraStack, Weights
from alpaca.serving.request import GenerationRequest
from alpaca.serving.sampling import choose
from alpaca.serving.scheduler import CHUNK, Scheduler
from alpaca.serving.sequence import Job, Sequence
from alpaca.serving.slots import Slots
from alpaca.serving.step import build_step
from alpaca.serving.stream import FinishReason, Stream

PATIENCE = 120.0  # seconds a request waits for a place for its adapter while all are in use


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
        default: Adapter | None = None,
        eos_ids: tuple[int, ...],
        say: Callable[[str], None] = print,
    ) -> None:
        """`template` and `default` (an adapter) are for requests that name none."""
        self._decoder = decoder
        self._cache = KeyValueCache(decoder.model.config, plan, decoder.dtype, decoder.device)
        self._slots = Slots(plan.slots)
        self._stack = LoraStack(decoder.projections, decoder.columns)
        self._admission = Admission(
            tokenizer=tokenizer,
            template=template,
            adapters=adapters,
            default=default,
            eos_ids=eos_ids,
            context=plan.context,
            vocabulary=len(decoder.head),
            stack=self._stack,
            device=decoder.device,
        )
        self._say = say
        self._scheduler = Scheduler(CHUNK[decoder.device.type])
        self._inbox: SimpleQueue[Job | None] = SimpleQueue()
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._loader = ThreadPoolExecutor(1, "adapter-loader")
        self._loading: dict[str, Future[Weights]] = {}
        self._lock = threading.Lock()
        self._submitted = 0
        self._steps = 0
        self._finished: Counter[FinishReason] = Counter()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    # --- any thread ---
    def submit(self, request: GenerationRequest) -> Stream:
        """Check the request and queue it. Raises what Admission.admit raises, or EngineStopped."""
        job = self._admission.admit(request)
        with self._lock:
            if self._closing or not self._thread.is_alive():
                raise EngineStopped("the engine has stopped; restart the server")
            self._submitted += 1
            self._inbox.put(job)
        return job.stream

    def stats(self) -> Stats:
        with self._lock:
            return Stats(
                submitted=self._submitted,
                waiting=len(self._waiting) + self._inbox.qsize(),
                running=len(self._running),
                finished=dict(self._finished),
                steps=self._steps,
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
        self._inbox.put(None)
        self._thread.join()
        self._loader.shutdown()

    # --- the engine's thread ---
    def _work(self) -> None:
        try:
            with torch.inference_mode():
                while not self._closing:
                    self._receive(wait=False)
                    self._drop_cancelled()
                    self._admit()
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
        """Give waiting answers slots, in their order, as long as there are any."""
        wanted = {answer.job.adapter.digest for answer in self._waiting if answer.job.adapter}
        for digest in [digest for digest, future in self._loading.items() if future.done() and digest not in wanted]:
            del self._loading[digest]  # read for a request that was cancelled meanwhile
        for answer in list(self._waiting):
            if not self._slots.free:
                return
            if answer.job.over:
                continue  # it failed while its sibling was looked at
            if answer.index and not answer.job.answers[0].prefilled and answer.job.answers[0].finish is None:
                continue  # the first answer computes the prompt for all of them
            try:
                if answer.job.adapter is not None and not self._place(answer, answer.job.adapter):
                    return
                self._start(answer)
            except Exception as error:
                self._fail(answer.job, error)

    def _place(self, answer: Sequence, adapter: Adapter) -> bool:
        """Give an answer its adapter's place; False while that is still being read or all places are in use."""
        place = self._stack.find(adapter.digest)
        if place is None:
            future = self._loading.get(adapter.digest)
            if future is None:
                future = self._loading[adapter.digest] = self._loader.submit(self._load, adapter)
                future.add_done_callback(lambda _: self._inbox.put(None))
            if not future.done():
                return False
            try:
                place = self._stack.put(adapter.digest, future.result())
            finally:
                if place is not None or future.exception() is not None:
                    del self._loading[adapter.digest]
            if place is None:
                answer.blocked = answer.blocked or time.perf_counter()
                if time.perf_counter() - answer.blocked > PATIENCE:
                    del self._loading[adapter.digest]
                    raise NoRoom(f"all places for adapters were in use for {PATIENCE:g} s; ask again later")
                return False
        self._stack.pin(place)
        answer.place = place
        return True

    def _load(self, adapter: Adapter) -> Weights:
        """Read an adapter from disk, on the loader's thread, and say what it changes."""
        tensors, files = load_tensors(adapter.files), adapter.files
        changed = changed_modules(tensors)
        self._say(f"adapter: {adapter.name} changes {changed} of its {len(files.modules)} modules")
        if changed == 0:
            self._say(f"adapter: WARNING: every B of {adapter.name} is zero, so it changes nothing")
        return self._stack.prepare(files.spec, files.modules, tensors)

    def _start(self, answer: Sequence) -> None:
        grant = self._slots.take(answer.job.key, answer.tokens)
        assert grant is not None, "a slot was free"
        answer.slot, answer.computed, answer.reused = grant.slot, grant.reused, grant.reused
        self._cache.begin(grant.slot.number, grant.reused)
        if grant.source is not None:
            self._cache.copy(grant.source.number, grant.slot.number, grant.reused)
        answer.started = time.perf_counter()
        with self._lock:
            self._waiting.remove(answer)
            self._running.append(answer)

    def _step(self) -> None:
        """One forward pass; should it fail, those who took part fail, and nobody else."""
        parts = self._scheduler.next_step(self._running)
        try:
            step, ordered = build_step(parts, self._decoder)
            logits = self._decoder.forward(step, self._cache)
            for answer, count in ordered:
                assert answer.slot is not None
                answer.slot.tokens += answer.tokens[answer.computed : answer.computed + count]
                answer.computed += count
            ready = [answer for answer, _ in ordered if not answer.remaining]
            tokens = choose(logits, [answer.sampler for answer in ready]) if ready else []
        except Exception as error:
            for job in {answer.job: None for answer, _ in parts}:
                self._fail(job, error)
            if self._decoder.device.type == "cuda":
                torch.cuda.empty_cache()
            return
        self._steps += 1
        for answer, token in zip(ready, tokens, strict=True):
            answer.accept(token, len(ready))
            if answer.finish is not None:
                self._finish(answer, answer.finish)

    # --- how answers end ---
    def _finish(self, answer: Sequence, reason: FinishReason) -> None:
        """The one terminal chunk of an answer; after the request's last one, its stream ends."""
        self._give_back(answer)
        chunk = answer.last_chunk(reason)
        with self._lock:
            self._finished[reason] += 1
        answer.job.stream.put(chunk)
        if all(other.finish is not None for other in answer.job.answers):
            answer.job.over = True
            answer.job.stream.end()

    def _fail(self, job: Job, error: Exception) -> None:
        """End a request with an error; nothing its answers computed is reused."""
        readable = _readable(error)
        for answer in job.answers:
            if answer.finish is None:
                self._give_back(answer, broken=True)
                answer.finish = FinishReason.FAILED
                with self._lock:
                    self._finished[FinishReason.FAILED] += 1
        job.over = True
        job.stream.end(readable)

    def _give_back(self, answer: Sequence, *, broken: bool = False) -> None:
        """Free what an answer holds: its slot and its pin on the adapter."""
        with self._lock:
            for group in (self._running, self._waiting):
                with contextlib.suppress(ValueError):
                    group.remove(answer)
        if answer.slot is not None:
            self._cache.end(answer.slot.number, len(answer.tokens))
            self._slots.release(answer.slot, broken=broken)
            answer.slot = None
        if answer.place is not None:
            self._stack.unpin(answer.place)
            answer.place = None

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
