"""The server's side of a connection: uvicorn's own, with an end to clients who keep it waiting."""

from __future__ import annotations

import asyncio
import re

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_SECONDS = 15.0  # from the first byte, or from the connection, to the end of a request's headers
HEADER_BYTES = 16 << 10  # of one request
KEEP_SECONDS = 20  # an idle connection is kept for the next request
SEND_SECONDS = 30.0  # for a client to take what it was sent, once as much waits as the system holds
UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)


class GuardedProtocol(HttpToolsProtocol):
    """Cuts a connection whose request's headers do not end, one whose client still sends a body that was answered
    already, and one whose client takes nothing of what it is sent."""

    _headers_due: asyncio.TimerHandle | None = None
    _taking_due: asyncio.TimerHandle | None = None
    _in_headers = False
    _unended = 0
    """Bytes of headers that have not ended, but for those that came with their first one."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        continued = self._in_headers
        if not continued and (self.cycle is None or not self.cycle.more_body):
            data = _without_upgrade(data)
        super().data_received(data)
        if self._in_headers and continued:
            self._unended += len(data)
            if self._unended > HEADER_BYTES and not self.transport.is_closing():
                self.send_400_response(f"A request's headers may have {HEADER_BYTES} bytes.")
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        else:
            self._expect()

    # --- what the parser finds ---
    def on_message_begin(self) -> None:
        self._in_headers, self._unended = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_headers = False
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > HEADER_BYTES:
            raise ValueError("too many bytes of headers")  # the parser ends with it: HTTP 400
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        if self.cycle.response_complete and self.cycle.more_body:
            self.transport.close()
        super().on_response_complete()

    # --- the connection ---
    def pause_writing(self) -> None:
        super().pause_writing()
        self._taking_due = self.loop.call_later(SEND_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._take()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self._take()
        super().connection_lost(exc)

    def _expect(self) -> None:
        """A request's headers must be whole from now on within HEADER_SECONDS."""
        if self._headers_due is None:
            self._headers_due = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _stop(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _take(self) -> None:
        if self._taking_due is not None:
            self._taking_due.cancel()
            self._taking_due = None


def _without_upgrade(data: bytes) -> bytes:
    """The beginning of a request without its wish for another protocol. Java's client asks for HTTP/2 so, and may be
    answered in HTTP/1.1; but where the parser sees the wish, it leaves the body unread."""
    headers, end, rest = data.partition(b"\r\n\r\n")
    return UPGRADE.sub(b"", headers) + end + rest
