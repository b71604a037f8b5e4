"""An ASGI application around one handler: its body read within limits, its work cancelled when the client goes, its
errors in OpenAI's form."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing

import anyio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from alpaca.gateway.refusals import SERVER, Refused

BODY_SECONDS = 30.0  # for a whole body
Handler = Callable[[Request, bytes], Awaitable[Response]]
log = logging.getLogger("alpaca.gateway")


class Endpoint:
    """`most` bounds the body in bytes."""

    def __init__(self, handler: Handler, most: int) -> None:
        self._handler = handler
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            body = await self._body(request) if request.method == "POST" else b""
        except Refused as refused:
            told = refusal(refused)
            told.headers["Connection"] = "close"  # what is left of the body is not waited for
            await told(scope, receive, send)
            return
        except asyncio.IncompleteReadError:
            return
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            group.start_soon(watch)
            response = await self._respond(request, body)
            await response(scope, anyio.sleep_forever, send)  # type: ignore[arg-type]
            group.cancel_scope.cancel()

    async def _respond(self, request: Request, body: bytes) -> Response:
        try:
            return await self._handler(request, body)
        except Refused as refused:
            return refusal(refused)
        except Exception:
            log.exception("a fault of the gateway's own")
            return refusal(Refused(500, "the gateway failed; its log says why", kind=SERVER))

    async def _body(self, request: Request) -> bytes:
        """Raises Refused for what is no JSON by its type (which a page elsewhere may not send unasked), is too long, or
        takes too long; IncompleteReadError where the client has gone."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused(415, "the header Content-Type must be application/json")
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._most:
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise asyncio.IncompleteReadError(bytes(body), None)
                    body += message.get("body", b"")
                    if len(body) > self._most:
                        raise self._too_large()
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise Refused(408, f"the body was not whole after {BODY_SECONDS:g} s") from None

    def _too_large(self) -> Refused:
        return Refused(413, f"the body has more than {self._most:,} bytes", code="body_too_large")


class EventStream(Response):
    """Server-sent events. Whatever ends the response closes `events`."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], headers: dict[str, str]) -> None:
        self.status_code = 200
        self.background = None
        self.events = events
        # X-Accel-Buffering: a proxy such as nginx must not keep pieces until there are many.
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no", **headers})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self.events) as events:  # type: ignore[type-var]
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def refusal(refused: Refused) -> JSONResponse:
    return JSONResponse(refused.body, refused.status, refused.headers)
