"""Decoding steps of fixed shapes, which a GPU is given whole: CUDA graphs, and the plain way where there is none.

A step is some hundred small operations. Started one by one they take a CPU longer than they take many a GPU. A graph is
a step that was captured once; replaying it starts all of them with one call. It always works on the same memory in the
same shapes, so what differs from step to step is copied into place before, and the rest is rounded up to one of a few:

    rows      to a power of 2; rows that fill up repeat the first: they write what it writes, where it writes it
    length    of what each row reads to a power of 2; what is beyond a row's own is masked
    width     of the adapters' columns to a power of 4, times a page; columns of nobody count for nothing

Where a base runs on a CPU, the same steps can be computed one operation at a time: so tests see what is captured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alpaca.progress import Say
from alpaca.serving.attention import Gathered
from alpaca.serving.cache import KeyValueCache
from alpaca.serving.decoder import Decoder, Step
from alpaca.serving.lora import PAGE, strengths, used_width
from alpaca.serving.projection import Mix
from alpaca.serving.step import Parts
from alpaca.serving.transfer import send_into

MOST_ROWS = 64
SHORTEST = 256  # tokens that every row reads at least: fewer shapes, and lengths that attention is fast with
MOST_GATHERED = (
    128_000_000  # bytes of keys and values a layer copies together; beyond, the copy takes longer than it saves
)
MOST_GRAPHS = 64  # each takes a few MB for its list of operations, and a moment to capture


@dataclass(frozen=True)
class Shape:
    """What a graph is captured for."""

    rows: int
    length: int
    width: int


class FixedStep:
    """A decoding step of one shape: its inputs, which stay where they are, and what is computed of them."""

    def __init__(self, shape: Shape, decoder: Decoder, cache: KeyValueCache, logits: Tensor) -> None:
        """`logits` [at least as many rows, vocabulary] takes the result."""
        self._shape, self._decoder, self._cache, self._logits = shape, decoder, cache, logits
        self._numbers = torch.zeros(3, shape.rows, dtype=torch.long, device=decoder.device)
        self._strengths = torch.zeros(shape.rows, shape.width, dtype=decoder.dtype, device=decoder.device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def fill(self, parts: Parts) -> None:
        """Put the inputs of a step in place: each row's token, its position, and where its answer's range begins."""
        answers = [answer for answer, _ in parts]
        answers += answers[:1] * (self._shape.rows - len(answers))
        rows = [(a.tokens[a.computed], a.computed, a.slot.start) for a in answers if a.slot is not None]
        send_into(self._numbers, torch.tensor(rows).T.contiguous())
        if self._shape.width:
            users = [(answer.places, 1) for answer in answers]
            send_into(self._strengths, strengths(users, self._shape.width).to(self._decoder.dtype))

    def compute(self) -> None:
        """The step, in operations none of whose shapes and places depend on its inputs."""
        tokens, positions, starts = self._numbers
        reach = torch.arange(self._shape.length, device=tokens.device)
        beyond = reach > positions[:, None]
        index = starts[:, None] + torch.minimum(reach, positions[:, None])
        mask = torch.zeros(beyond.shape, dtype=self._decoder.dtype, device=tokens.device)
        mask = mask.masked_fill(beyond, -torch.inf)[:, None, None, :]
        rows = self._shape.rows
        step = Step(
            tokens=tokens,
            positions=positions,
            where=starts + positions,
            parts=[Gathered(0, rows, index.flatten(), mask)],
            wanted=torch.arange(rows, device=tokens.device),
            mix=self._mix(self._decoder.members),
            head_mix=self._mix({1}) if self._decoder.head_projection else None,
        )
        self._logits[:rows].copy_(self._decoder.forward(step, self._cache))

    def _mix(self, members: set[int]) -> Mix | None:
        if not self._shape.width:
            return None
        return Mix(self._shape.width, {size: self._strengths.repeat_interleave(size, dim=1) for size in members})


class Graphs:
    """The steps of fixed shapes of one engine, made as they are first needed. Only its thread may use it."""

    def __init__(self, decoder: Decoder, cache: KeyValueCache, places: int, *, capture: bool, say: Say) -> None:
        """`places`: answers at the same time. `capture`: False computes the same steps one operation at a time."""
        self._decoder, self._cache, self._capturing, self._say = decoder, cache, capture, say
        self._most = _power(min(places, MOST_ROWS), 2)
        self._steps: dict[Shape, FixedStep] = {}
        self._logits: Tensor | None = None
        self._broken = False
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None
        self.replayed = 0
        """Steps that came from here."""

    def forward(self, parts: Parts) -> Tensor | None:
        """Logits of a step's answers, in their order; its keys and values are in the cache afterwards.

        None, and nothing done, for a step that no graph is for. The logits hold until the next step.
        """
        shape = None if self._broken else self._shape(parts)
        if shape is None or (shape not in self._steps and len(self._steps) >= MOST_GRAPHS):
            return None
        if self._logits is None:
            vocabulary = len(self._decoder.embedding)
            self._logits = torch.empty(self._most, vocabulary, dtype=torch.float32, device=self._decoder.device)
        if shape not in self._steps:
            self._steps[shape] = FixedStep(shape, self._decoder, self._cache, self._logits)
        step = self._steps[shape]
        step.fill(parts)
        if not self._capturing:
            step.compute()
        elif not self._replay(step):
            return None
        self.replayed += 1
        return self._logits[: len(parts)]

    def _shape(self, parts: Parts) -> Shape | None:
        """None where a row is no decoding one, an adapter is DoRA, or too much would be copied together."""
        if len(parts) > self._most or any(count != 1 or answer.remaining != 1 for answer, count in parts):
            return None
        if any(place.dora for answer, _ in parts for place, _ in answer.places):
            return None
        rows = _power(len(parts), 2)
        length = max(SHORTEST, _power(max(answer.computed + 1 for answer, _ in parts), 2))
        keys = self._cache.keys[0]
        if rows * length * 2 * len(keys) * keys.shape[-1] * keys.itemsize > MOST_GATHERED:
            return None
        width = used_width([(answer.places, 1) for answer, _ in parts])
        most = next(iter(self._decoder.projections.values()))[0].columns
        return Shape(rows, length, min(PAGE * _power(-(-width // PAGE), 4), most) if width else 0)

    def _replay(self, step: FixedStep) -> bool:
        """False, now and from then on, where capturing fails: every step is computed the plain way then."""
        if step.graph is None:
            try:
                step.graph = self._capture(step)
            except Exception as error:
                self._broken = True
                self._steps.clear()
                first: BaseException = error
                while first.__context__ is not None:  # ending a capture that failed fails, too, and says less
                    first = first.__context__
                reason = (str(first).strip() or type(first).__name__).splitlines()[0]
                self._say(f"graphs: none from now on, a step could not be captured ({reason})")
                return False
        step.graph.replay()
        return True

    def _capture(self, step: FixedStep) -> torch.cuda.CUDAGraph:
        """The step once for real, so that what is made at first use is there, then once more into a graph.

        All graphs share one pool of memory. torch allows it where they never run at the same time and the result of one
        is read before the next runs: here it is copied out at the end of each. Other threads may use the device in the
        meantime, to prepare an adapter: thread_local lets them.
        """
        device = self._decoder.device
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
        with torch.cuda.device(device):
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            self._stream = self._stream or torch.cuda.Stream(device)
            try:
                self._stream.wait_stream(before)
                with torch.cuda.stream(self._stream):
                    step.compute()
                before.wait_stream(self._stream)
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    step.compute()
            finally:  # a capture that fails leaves its own stream the current one
                torch.cuda.set_stream(before)
        return graph


def open_graphs(decoder: Decoder, cache: KeyValueCache, places: int, wanted: bool | None, say: Say) -> Graphs | None:
    """Graphs for an engine, unless they are not `wanted`: None is for a GPU, True also for a CPU, where nothing can be
    captured. What is chosen on a GPU is said."""
    on_gpu = decoder.device.type == "cuda"
    if not on_gpu:
        return Graphs(decoder, cache, places, capture=False, say=say) if wanted else None
    waits = any(weight.dtype == torch.int8 for weight in decoder.model.parameters())
    if wanted is False or waits:
        why = "GRAPHS=0" if wanted is False else "each product in int8 asks the GPU for outliers and waits"
        say(f"graphs: none ({why})")
        return None
    say(f"graphs: decoding steps of up to {min(places, MOST_ROWS)} answers are captured as they first come")
    return Graphs(decoder, cache, places, capture=True, say=say)


def _power(number: int, base: int) -> int:
    """The least power of `base` that is not below `number`."""
    found = 1
    while found < number:
        found *= base
    return found
