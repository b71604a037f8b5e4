"""The engine: requests go in, streams of chunks come out, and one thread owns the model.

GenerateEngine answers one request after another with transformers' generate(). Whatever takes its place keeps the
Engine protocol: validation before admission, one terminal chunk per answer, cancellation by closing the stream.
"""

from __future__ import annotations

import secrets
import sys
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Protocol

from alpaca.errors import AlpacaError, EngineStopped, GenerationFailed, PromptTooLong
from alpaca.examples import encode_prompt
from alpaca.prompts import Template, load_template
from alpaca.serving.literal import LiteralTemplate
from alpaca.serving.request import GenerationRequest
from alpaca.serving.stream import Chunk, FinishReason, Stream, Usage
from alpaca.serving.text import TextStream


@dataclass(frozen=True)
class Stats:
    """What the engine has done since its start. `finished` counts answers by how they ended."""

    submitted: int
    waiting: int
    running: int
    finished: dict[FinishReason, int]


class Engine(Protocol):
    """What predict.py and the tools need of an engine."""

    def submit(self, request: GenerationRequest) -> Stream:
        """Admit a request, or raise its error at once. Safe from any thread."""

    def stats(self) -> Stats: ...

    @property
    def alive(self) -> bool:
        """False once requests can't be answered any more."""

    def close(self) -> None:
        """Cancel everything and end the thread."""


@dataclass
class _Job:
    request: GenerationRequest
    prompt: list[int]
    max_tokens: int
    stop_strings: tuple[str, ...]
    seed: int
    stream: Stream
    submitted: float = field(default_factory=time.perf_counter)


class GenerateEngine:
    """One request at a time through generate(), on the thread that owns the model."""

    def __init__(self, model: Any, tokenizer: Any, template: Template) -> None:
        """`model`: a base or a PeftModel, the engine's own until close(), which leaves the base as it was.

        `template` is what requests get that name none.
        """
        from transformers import GenerationConfig

        # An adapter's layers sit inside the base; PeftModel.generate() would put back the settings taken away here.
        self._adapted = model if hasattr(model, "get_base_model") else None
        self._model = self._adapted.get_base_model() if self._adapted is not None else model
        self._tokenizer = tokenizer
        self._template = template
        self._context: int = self._model.config.max_position_embeddings
        self._eos_ids = end_ids(self._model, tokenizer)
        self._adapter = AdapterScale(self._model)
        # A base may ask for a temperature or penalty of its own; here the request alone decides.
        self._base_settings = self._model.generation_config
        self._model.generation_config = GenerationConfig()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._submitted = 0
        self._running: _Job | None = None
        self._finished: Counter[FinishReason] = Counter()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    # --- any thread ---
    def submit(self, request: GenerationRequest) -> Stream:
        """Check the request against template and context and queue it.

        Raises PromptTooLong with both numbers, TemplateNotFound, BadTemplate, BadMessages or EngineStopped.
        """
        template = self._template_for(request)
        prompt = encode_prompt(self._tokenizer, template, request.example)
        job = _Job(
            request,
            prompt,
            self._room(request, len(prompt)),
            (*template.stop_strings, *request.stop_sequences),
            secrets.randbelow(2**32) if request.seed is None else request.seed,
            Stream(),
        )
        with self._lock:
            if self._closing or not self._thread.is_alive():
                raise EngineStopped("the engine has stopped; restart the server")
            self._submitted += 1
            self._jobs.put(job)
        return job.stream

    def stats(self) -> Stats:
        with self._lock:
            running = int(self._running is not None)
            return Stats(self._submitted, self._jobs.qsize(), running, dict(self._finished))

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    def close(self) -> None:
        with self._lock:
            self._closing = True
            if self._running is not None:
                self._running.stream.close()
        self._jobs.put(None)
        self._thread.join()
        self._model.generation_config = self._base_settings
        if self._adapted is not None:
            self._adapted.unload()

    def _template_for(self, request: GenerationRequest) -> Template:
        wanted = request.prompt_template
        if not wanted:
            return self._template
        if "{" in wanted or "\n" in wanted:
            return LiteralTemplate(wanted)
        return load_template(wanted, self._tokenizer, allow_path=False)

    def _room(self, request: GenerationRequest, prompt_length: int) -> int:
        """How many tokens the answer may have."""
        if prompt_length >= self._context:
            raise PromptTooLong(
                f"the prompt has {prompt_length:,} tokens, and the base's context holds {self._context:,} "
                "together with the answer"
            )
        room = self._context - prompt_length
        if request.total_tokens is None:
            return min(request.max_tokens, room)
        if prompt_length >= request.total_tokens:
            raise PromptTooLong(
                f"the prompt has {prompt_length:,} tokens, and total_tokens allows {request.total_tokens:,} "
                "together with the answer"
            )
        return min(request.total_tokens - prompt_length, room)

    # --- the engine's thread ---
    def _work(self) -> None:
        try:
            while (job := self._jobs.get()) is not None and not self._closing:
                self._serve(job)
            self._jobs.put(job)
        finally:
            with self._lock:  # after this, submit() lets nothing in
                self._closing = True
            while not self._jobs.empty():
                if (job := self._jobs.get()) is not None:
                    job.stream.end(EngineStopped("the engine was stopped before this request's turn"))

    def _serve(self, job: _Job) -> None:
        with self._lock:
            self._running = job
            if self._closing:
                job.stream.close()
        try:
            self._answer_all(job)
            job.stream.end()
        except BaseException as error:
            with self._lock:
                self._finished[FinishReason.FAILED] += 1
            job.stream.end(_readable(error))
            if not isinstance(error, Exception):
                raise
        finally:
            with self._lock:
                self._running = None

    def _answer_all(self, job: _Job) -> None:
        self._adapter.set(job.request.adapter_scale)
        for index in range(job.request.n):
            final = self._answer(job, index)
            with self._lock:
                assert final.finish is not None
                self._finished[final.finish] += 1
            job.stream.put(final)

    def _answer(self, job: _Job, index: int) -> Chunk:
        """Generate answer `index`, streaming it, and return its terminal chunk."""
        import torch
        from transformers import GenerationConfig, StoppingCriteriaList

        from alpaca.serving.sampling import answer_seed, processors
        from alpaca.serving.tap import Tap

        seed = answer_seed(job.seed, index)
        tap = Tap(job.stream, TextStream(self._tokenizer, job.stop_strings), index, self._eos_ids)
        if not job.stream.cancelled:
            device = self._model.device
            prompt = torch.tensor([job.prompt], device=device)
            self._model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=GenerationConfig(
                    max_new_tokens=job.max_tokens,
                    do_sample=False,  # the last processor draws
                    eos_token_id=list(self._eos_ids),
                    pad_token_id=self._eos_ids[0],
                ),
                logits_processor=processors(
                    job.request, prompt_length=len(job.prompt), eos_ids=self._eos_ids, seed=seed, device=device
                ),
                stopping_criteria=StoppingCriteriaList([tap]),
            )
        first = None if tap.first_token is None else tap.first_token - job.submitted
        usage = Usage(len(job.prompt), tap.tokens, first, time.perf_counter() - job.submitted, seed)
        return Chunk(tap.text.finish(), index, tap.reason, usage)


class AdapterScale:
    """The strength of the adapter inside a model; without an adapter there is nothing to set."""

    def __init__(self, model: Any) -> None:
        self._layers = [module for module in model.modules() if isinstance(getattr(module, "scaling", None), dict)]
        self._trained = [dict(layer.scaling) for layer in self._layers]

    def set(self, scale: float) -> None:
        """0 leaves the base alone, 1 is the adapter as trained."""
        for layer, trained in zip(self._layers, self._trained, strict=True):
            layer.scaling.update({name: factor * scale for name, factor in trained.items()})
            layer.enable_adapters(scale != 0)  # a DoRA layer at factor 0 is still not the base's


def end_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end an answer, the tokenizer's EOS first; a chat base's settings may name several."""
    ids = [tokenizer.eos_token_id]
    for config in (model.generation_config, model.config):
        named = getattr(config, "eos_token_id", None)
        ids += named if isinstance(named, list) else [named]
    return tuple(dict.fromkeys(i for i in ids if i is not None))


def _readable(error: BaseException) -> BaseException:
    """What the reader of a stream gets for `error`: always an error with a code."""
    if isinstance(error, AlpacaError):
        return error
    traceback.print_exception(error, file=sys.stderr)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "out of memory" in reason.lower() or isinstance(error, MemoryError):
        reason = f"out of memory; a shorter prompt, fewer max_tokens or a smaller precision may fit ({reason})"
    return GenerationFailed(reason)
