"""The adapter of requests that name none."""

from __future__ import annotations

from collections.abc import Callable

from alpaca.cancellation import NEVER, Cancellation
from alpaca.errors import AlpacaError
from alpaca.progress import Say
from alpaca.serving.adapters import Adapter, AdapterStore


class DefaultAdapter:
    """Looked up for every request: it may be trained anew while it is served, or go from the cache of downloads."""

    def __init__(self, source: str, store: AdapterStore, say: Say) -> None:
        """`source` is the operator's word. Raises what AdapterStore.find raises."""
        self._source = source
        self._store = store
        self._say = say
        self.last = store.find(source, trusted=True)

    def find(self, in_memory: Callable[[Adapter], bool], cancellation: Cancellation = NEVER) -> Adapter:
        """The adapter that is there now. Where there is none that is whole, such as while a new one takes the place of
        the old, the previous one still answers if it is `in_memory`; else the store's error is raised."""
        try:
            self.last = self._store.find(self._source, trusted=True, cancellation=cancellation)
        except AlpacaError as error:
            if not in_memory(self.last):
                raise
            self._say(f"adapter: {self.last.name} is served as it was loaded before: {error}")
        return self.last
