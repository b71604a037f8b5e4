"""Before any route: by which name the gateway is called, and what browsers may do with its answers."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alpaca.gateway.endpoint import refusal
from alpaca.gateway.refusals import Refused

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Door:
    """`hosts`: the names it may be called by, whatever the port; None: any."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str] | None) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if self._hosts is not None and _name(Headers(scope=scope).get("host", "")) not in self._hosts:
            says = f"it is called by a name that is not its own: {' or '.join(self._hosts)}; --called NAME adds one"
            await refusal(Refused(421, says))(scope, receive, marked)
            return
        await self._app(scope, receive, marked)


def _name(host: str) -> str:
    """A Host header without its port."""
    name, _, port = host.rpartition(":")
    return (name if port.isdecimal() and name else host).lower()
