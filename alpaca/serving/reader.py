"""Reads adapters from disk beside the engine's thread, each once for all the requests that wait for it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor

from alpaca.adapter.folder import changed_modules, load_tensors
from alpaca.errors import AlpacaError
from alpaca.progress import Say
from alpaca.serving.adapters import Adapter
from alpaca.serving.lora import LoraStack, Weights


class AdapterReader:
    """Keeps what it read until somebody forgets it; what could not be read is forgotten when it is asked for."""

    def __init__(self, stack: LoraStack, done: Callable[[], None], say: Say) -> None:
        """`done` is called, on the reader's thread, when an adapter was read or could not be."""
        self.thread = ThreadPoolExecutor(1, "adapter-reader")
        self._stack = stack
        self._done = done
        self._say = say
        self._read: dict[str, Future[Weights]] = {}

    def __len__(self) -> int:
        """Adapters that are being read, or were and are still kept."""
        return len(self._read)

    def read(self, adapter: Adapter) -> Weights | None:
        """The adapter's weights, or None while they are being read. Raises what reading them failed with."""
        future = self._read.get(adapter.digest)
        if future is None:
            future = self._read[adapter.digest] = self.thread.submit(self._load, adapter)
            future.add_done_callback(lambda _: self._done())
        if not future.done():
            return None
        if future.exception() is not None:
            self.forget(adapter)
        return future.result()

    def forget(self, adapter: Adapter) -> None:
        """Its weights are where they belong, or nobody waits for them any more."""
        self._read.pop(adapter.digest, None)

    def forget_all_but(self, wanted: Collection[str]) -> None:
        """Drop what was read for requests that are gone; `wanted` are digests."""
        self._read = {digest: future for digest, future in self._read.items() if digest in wanted or not future.done()}

    def close(self) -> None:
        self.thread.shutdown()

    def _load(self, adapter: Adapter) -> Weights:
        """Read an adapter from disk and say what it changes. What goes wrong with it is said by its name."""
        try:
            return self._prepared(adapter)
        except AlpacaError as error:
            raise error if adapter.name in error.message else type(error)(f"{adapter.name}: {error.message}") from None

    def _prepared(self, adapter: Adapter) -> Weights:
        tensors, files = load_tensors(adapter.files), adapter.files
        changed = changed_modules(tensors)
        self._say(f"adapter: {adapter.name} changes {changed} of its {len(files.modules)} modules")
        if changed == 0:
            self._say(f"adapter: WARNING: every B of {adapter.name} is zero, so it changes nothing")
        return self._stack.prepare(files.spec, files.modules, tensors)
