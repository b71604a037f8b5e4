"""Connections to servers: kept for the next request, and opened anew where a kept one turns out to be closed."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import aiohttp

STALE = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)


class Connections:
    """To be left with `async with`."""

    def __init__(self) -> None:
        self._kept = _session(aiohttp.TCPConnector(limit=0))
        self._new = _session(aiohttp.TCPConnector(limit=0, force_close=True))

    async def __aenter__(self) -> Connections:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:  # fmt: skip
        await self._kept.close()
        await self._new.close()

    async def request(self, method: str, url: str, **options: Any) -> aiohttp.ClientResponse:
        """Send a request and return what answers it, to be left with `async with`. A server may close a kept connection
        in the moment in which it is used again; it has not seen the request then, which is sent once more."""
        options["allow_redirects"] = False
        try:
            return await self._kept.request(method, url, **options)
        except STALE as error:
            if isinstance(error, aiohttp.ClientConnectorError):
                raise
            return await self._new.request(method, url, **options)


def _session(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
