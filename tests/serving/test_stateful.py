"""Whatever clients do, in whatever order: slots and places come back, each answer ends once, and answers are right."""

from __future__ import annotations

import functools
import operator
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, multiple, precondition, rule

from alpaca.errors import BadAdapter, GenerationFailed
from alpaca.serving.cache import WHOLE
from alpaca.serving.engine import Engine
from alpaca.serving.inputs import request_from_inputs
from alpaca.serving.limits import EngineLimits
from alpaca.serving.loading import load_base, open_engine
from alpaca.serving.slots import BLOCK
from alpaca.serving.stream import Chunk, Stream
from tests.conftest import make_base
from tests.serving.oracle import Oracle
from tests.serving.peft_adapters import EVERY_KIND, make_adapters

COMPOSITIONS = ["a:0.5+b", "b:0.25+a:2"]
SLOTS, POOL, COLUMNS, LONGEST = 3, 320, 32, 24
PROMPTS = ["a", "hay and grass " * 2, "hay and grass " * 2 + "for the alpaca", "hay and grass " * 40, "你好 🦙"]


class World:
    """What all runs share: a base, adapters that don't fit into memory together, and what is right."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="alpaca-test-")
        folder = Path(self._folder.name)
        base = make_base(folder / "base")
        self.roots = make_adapters(base, folder / "adapters", EVERY_KIND)
        self.loaded = load_base(str(base), "fp32", say=lambda line: None)
        self._oracle = Oracle(base, self.roots)
        limits = EngineLimits(concurrency=1, context=512, roots=(self.roots,), drafts=False)
        alone = load_base(str(base), "fp32", say=lambda line: None)
        self._alone = open_engine(alone, limits=limits, say=lambda line: None)

    def engine(self) -> Engine:
        """With a pool that one long answer and two short ones fill, so that they wait, move and displace each other."""
        limits = EngineLimits(concurrency=SLOTS, context=POOL, columns=COLUMNS, roots=(self.roots,))
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(WHOLE, "cpu", 1)
            return open_engine(self.loaded, limits=limits, say=lambda line: None)

    @functools.cache  # noqa: B019 - there is one world
    def greedy(self, prompt: str, adapter: str, scale: float, max_tokens: int) -> str:
        """By PEFT."""
        name = adapter if scale else "none"
        tokens = self._oracle.tokens(prompt, name, scale=scale or 1.0, max_tokens=LONGEST)
        return self._oracle.decode(tokens[:max_tokens])

    @functools.cache  # noqa: B019
    def drawn(self, prompt: str, adapter: str, scale: float, max_tokens: int, n: int) -> tuple[str, ...]:
        """By an engine that has nothing else to do and guesses nothing."""
        request = inputs(prompt, adapter, scale, max_tokens, n, 1.0)
        texts = [""] * n
        for chunk in self._alone.submit(request):
            texts[chunk.index] += chunk.text
        return tuple(texts)


@functools.cache
def world() -> World:
    return World()


def inputs(prompt: str, adapter: str, scale: float, max_tokens: int, n: int, temperature: float) -> Any:
    return request_from_inputs(
        prompt=prompt, adapter=adapter, adapter_scale=scale, max_tokens=max_tokens, n=n, temperature=temperature,
        seed=7, prompt_template="{prompt}",
    )  # fmt: skip


@dataclass(eq=False)
class Client:
    """A request, the answers it should get, and the chunks it got."""

    stream: Stream
    expected: tuple[str, ...]
    chunks: list[Chunk] = field(default_factory=list)
    failed: bool = False
    closed: bool = False
    ends: int = 0
    """How often the stream ended: by itself, or with an error."""

    def read(self, count: int) -> None:
        try:
            for _ in range(count):
                chunk = next(self.stream, None)
                if chunk is None:
                    self.ends = 1
                    return
                self.chunks.append(chunk)
        except GenerationFailed:
            self.ends, self.failed = 1, True

    def check(self) -> None:
        """To the end: one terminal chunk for each answer and one end of the stream, whether or not it was read."""
        if not self.closed and not self.ends:
            self.read(10**6)
        while not self.stream._queue.empty():
            item = self.stream._queue.get_nowait()
            if isinstance(item, Chunk):
                assert self.closed
                self.chunks.append(item)
            else:
                self.ends += 1
                self.failed |= item is not None
        assert self.ends == 1
        texts = [""] * len(self.expected)
        terminal = [0] * len(self.expected)
        for chunk in self.chunks:
            assert not terminal[chunk.index], "something came after the end"
            texts[chunk.index] += chunk.text
            terminal[chunk.index] += chunk.finish is not None
        assert self.failed or terminal == [1] * len(self.expected)
        for text, expected in zip(texts, self.expected, strict=True):
            if self.closed or self.failed:
                assert expected.startswith(text.rstrip("\N{REPLACEMENT CHARACTER}"))
            else:
                assert text == expected


class Clients(RuleBasedStateMachine):
    """Clients of one engine with three slots and room for two small adapters or a large one."""

    clients = Bundle("clients")

    @initialize()
    def open(self) -> None:
        self.engine = world().engine()
        self.all: list[Client] = []
        self.faults = 0
        self.answers = 0

    @rule(
        target=clients,
        adapter=st.sampled_from(["none", *EVERY_KIND, *COMPOSITIONS]),
        scale=st.sampled_from([1.0, 1.0, 0.5, 0.0]),
        prompt=st.sampled_from(PROMPTS),
        max_tokens=st.sampled_from([1, 5, LONGEST]),
        n=st.sampled_from([1, 1, 2, 5]),
        greedy=st.booleans(),
    )
    def submit(self, adapter: str, scale: float, prompt: str, max_tokens: int, n: int, greedy: bool) -> Any:
        request = inputs(prompt, adapter, scale, max_tokens, n, 0.0 if greedy else 1.0)
        if adapter == "dora" and scale == 0.5:
            try:
                self.engine.submit(request)
            except BadAdapter:
                return multiple()
            raise AssertionError("DoRA at half strength was not refused")
        if greedy:
            expected = (world().greedy(prompt, adapter, scale, max_tokens),) * n
        else:
            expected = world().drawn(prompt, adapter, scale, max_tokens, n)
        self.answers += n
        client = Client(self.engine.submit(request), expected)
        self.all.append(client)
        return client

    @rule(client=clients, count=st.integers(1, 8))
    def read_some(self, client: Client, count: int) -> None:
        if not client.ends:
            client.read(count)

    @rule(client=consumes(clients))
    def disconnect(self, client: Client) -> None:
        client.stream.close()
        client.closed = True

    @rule(client=consumes(clients))
    def read_to_the_end(self, client: Client) -> None:
        if not client.ends:
            client.read(10**6)

    @precondition(lambda self: self.faults < 3)
    @rule(after=st.booleans())
    def break_a_step(self, after: bool) -> None:
        """The next forward pass fails, before or after it has written keys and values."""
        forward = type(self.engine._decoder).forward

        def fail(*args: Any) -> Any:
            del self.engine._decoder.forward
            if after:
                forward(self.engine._decoder, *args)
            raise RuntimeError("out of memory, by design")

        self.engine._decoder.forward = fail  # type: ignore[method-assign]
        self.faults += 1

    @rule(milliseconds=st.integers(0, 20))
    def wait(self, milliseconds: int) -> None:
        time.sleep(milliseconds / 1000)

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            try:
                self.check()
            finally:
                self.engine.close()

    def check(self) -> None:
        deadline = time.monotonic() + 60
        while not self.all_is_free():
            assert time.monotonic() < deadline, f"{self.engine.stats()}, {self.engine._slots.free} slots free"
            time.sleep(0.001)
        for client in self.all:
            client.check()
        assert self.engine.alive
        assert sum(self.engine.stats().finished.values()) == self.answers
        assert self.faults or not any(client.failed for client in self.all)
        self.check_what_is_left()

    def check_what_is_left(self) -> None:
        """The cache knows of every block in which answers or wrong guesses left something."""
        cache = self.engine._cache
        left = [memory.any(-1).any(0) for memory in (*cache.keys, *cache.values)]
        blocks = {place // BLOCK for place in functools.reduce(operator.or_, left).nonzero()[:, 0].tolist()}
        assert blocks <= set(cache._written.nonzero()[0].tolist())

    def all_is_free(self) -> bool:
        stats, reading = self.engine.stats(), self.engine._reader
        done = sum(stats.finished.values()) >= self.answers
        return done and not (
            stats.running or stats.waiting or stats.pinned or len(reading) or self.engine._slots.free < SLOTS
        )


TestClients = Clients.TestCase
TestClients.pytestmark = pytest.mark.long  # type: ignore[attr-defined]
TestClients.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
