"""All servers behind the gateway: which models there are, who has room, and who is well."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Sequence

from alpaca.gateway.refusals import NOT_FOUND, SERVER, Refused
from alpaca.gateway.served import Model
from alpaca.gateway.upstream import Upstream
from alpaca.words import shown

PAUSE_SECONDS = 2.0  # between two looks at a server
MOST_NAMED = 50  # models in a message


class Pool:
    """The servers, looked at every few seconds."""

    def __init__(
        self, upstreams: Sequence[Upstream], *, say: Callable[[str], None], changed: Callable[[], None]
    ) -> None:
        """`changed` is called whenever a server comes, goes, or may have got more places."""
        self.upstreams = tuple(upstreams)
        self._say = say
        self._changed = changed

    @property
    def well(self) -> bool:
        return any(upstream.well for upstream in self.upstreams)

    def models(self) -> dict[str, Model]:
        """Every model of every server that has ever been well, by name."""
        found: dict[str, Model] = {}
        for upstream in self.upstreams:
            if upstream.served is not None:
                for name, model in upstream.served.models.items():
                    found.setdefault(name, model)
        return found

    def find(self, name: str) -> Model:
        """Raises Refused: 404 for a model that is not there, with those that are; 503 while none is known."""
        for upstream in self.upstreams:
            if upstream.served is not None and (model := upstream.served.find(name)) is not None:
                return model
        known = list(self.models())
        if not known:
            raise self.nobody()
        there = ", ".join(known[:MOST_NAMED]) + (" and more" if len(known) > MOST_NAMED else "")
        raise Refused(
            404, f"there is no model {shown(name, 80)!r}. There are: {there}",
            kind=NOT_FOUND, code="model_not_found", param="model",
        )  # fmt: skip

    def having(self, name: str) -> list[Upstream]:
        """The servers that are well and have the model."""
        return [u for u in self.upstreams if u.well and u.served is not None and u.served.find(name) is not None]

    def nobody(self) -> Refused:
        """What is said while no server is well."""
        reasons = "; ".join(dict.fromkeys(upstream.reason for upstream in self.upstreams if upstream.reason))
        return Refused(503, f"no server is ready: {shown(reasons, 300)}", kind=SERVER, retry_after=5)

    async def watch(self, upstream: Upstream) -> None:
        """Look at one server for as long as the gateway runs."""
        while True:
            before, reason = upstream.well, upstream.reason
            await upstream.look()
            if upstream.well != before or upstream.reason != reason:
                models = ", ".join(upstream.served.models) if upstream.served is not None else ""
                how = f"well; {upstream.places} places; {models}" if upstream.well else f"out: {upstream.reason}"
                self._say(f"upstream {upstream.url} {how}")
            self._changed()
            await asyncio.sleep(PAUSE_SECONDS)


def least_busy(free: Sequence[Upstream], affinity: str) -> Upstream:
    """The one with the largest share of its places free; of several, always the same for one conversation, because a
    server remembers what it has computed."""

    def rank(upstream: Upstream) -> tuple[float, int]:
        return upstream.taken / upstream.places, zlib.crc32(f"{affinity} {upstream.url}".encode())

    return min(free, key=rank)
