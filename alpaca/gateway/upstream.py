"""One server of Cog's: how it is, what it serves, and its predictions as they come."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

import aiohttp

from alpaca.gateway.connections import Connections
from alpaca.gateway.events import Event, EventReader, TooLong
from alpaca.gateway.refusals import Refused
from alpaca.gateway.served import DESCRIBES, Served

TAKES = {"READY", "BUSY"}
SPILL = 2
"""Requests sent beyond those that are answered at a time, so that a place which becomes free is filled at once."""
MOST_PLACES = 56
"""Of Cog's 64: one of a client that has gone is free a moment later, and descriptions need one too."""
DESCRIBE_SECONDS = 15.0  # between two looks at what is served
ODD = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What reading something of another form than Cog's ends with."""
LATE = 3
"""Looks in a row without an answer in time, before a server that was well is out: a busy machine answers late."""
CHECK_TIMEOUT = aiohttp.ClientTimeout(total=5.0)
ASK_TIMEOUT = aiohttp.ClientTimeout(sock_connect=5.0, sock_read=600.0)  # silence while a long prompt is read


class Busy(Exception):
    """Every place of Cog's is taken."""


class Broken(Exception):
    """The server can't answer, or stopped doing so; its text says how."""


class Upstream:
    """One server. `taken` is the gateway's own count; `places` how many requests it is given at a time."""

    def __init__(self, url: str, http: Connections, *, name: str, places: int | None) -> None:
        self.url = url.rstrip("/")
        self.well = False
        self.reason = "not asked yet"
        self.served: Served | None = None
        self.places = places or 1
        self.taken = 0
        self._http = http
        self._name = name
        self._given_places = places
        self._described = 0.0
        self._late = 0

    @property
    def free(self) -> int:
        return max(0, self.places - self.taken)

    # --- how it is ---
    async def look(self) -> None:
        """Ask how it is and, where it is time, what it serves."""
        try:
            status = (await self._json("GET", "/health-check"))["status"]
            if status not in TAKES:
                raise Broken(f"it is {status}")
            if not self.well or time.monotonic() - self._described > DESCRIBE_SECONDS:
                await self._learn()
        except Busy:
            if self.served is None:
                self._lost("it has no place free to say what it serves")
                return
        except TimeoutError:
            self._late += 1
            if self._late >= LATE or not self.well:
                self._lost("it does not answer in time")
            return
        except (Broken, aiohttp.ClientError, *ODD) as error:
            self._lost(_how(error))
            return
        self.well, self.reason, self._late = True, "", 0

    async def _learn(self) -> None:
        served = Served.by_schema(await self._json("GET", "/openapi.json"), self._name)
        if served.describes:
            answer = await self._json("POST", "/predictions", {DESCRIBES: "server"})
            served = served.described(json.loads("".join(answer["output"])))
            answers = served.answers or 1
            self.places = self._given_places or min(answers + SPILL, MOST_PLACES)
        self.served = served
        self._described = time.monotonic()

    async def _json(self, method: str, path: str, inputs: Mapping[str, Any] | None = None) -> dict[str, Any]:
        body = None if inputs is None else {"id": _new_id(), "input": inputs}
        async with await self._http.request(method, self.url + path, json=body, timeout=CHECK_TIMEOUT) as response:
            if response.status == 409:
                raise Busy
            if response.status != 200:
                raise Broken(f"{path} answers HTTP {response.status}")
            answer: dict[str, Any] = json.loads(await response.read())
            return answer

    def _lost(self, reason: str) -> None:
        self.well, self.reason = False, reason

    # --- predictions ---
    async def events(self, inputs: Mapping[str, Any]) -> AsyncIterator[list[Event]]:
        """The events of one prediction, those together that came together, `completed` among the last. Leaving it
        cancels the prediction: Cog ends what nobody listens to. Its id is made here and can't be guessed: whoever asks
        with the id of a running one is shown it.

        Raises Busy, Broken, or Refused for inputs that the server's schema does not take.
        """
        served = self.served
        assert served is not None
        body = {"id": _new_id(), "input": inputs}
        headers = {"Accept": "text/event-stream"} if served.streams else {}
        options: dict[str, Any] = {"json": body, "headers": headers, "timeout": ASK_TIMEOUT}
        try:
            async with await self._http.request("POST", f"{self.url}/predictions", **options) as response:
                if response.status != 200:
                    raise await _refusal(response)
                if not served.streams:
                    yield _whole(json.loads(await response.read()))
                    return
                reader = EventReader()
                async for data in response.content.iter_any():
                    if events := reader.read(data):
                        yield events
                        if any(name == "completed" for name, _ in events):
                            return
            raise Broken("it ended the stream before the answer's end")
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            self._lost(_how(error))
            raise Broken(self.reason) from None
        except aiohttp.ClientPayloadError:
            raise Broken("it closed the connection before the answer's end") from None
        except (aiohttp.ClientError, TimeoutError, TooLong, *ODD) as error:
            raise Broken(_how(error)) from None

    async def ask(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The last event of one prediction, with its whole output."""
        async with aclosing(self.events(inputs)) as events:  # type: ignore[type-var]
            async for together in events:
                for name, data in together:
                    if name == "completed":
                        return data
        raise Broken("it ended the stream before the answer's end")


def _new_id() -> str:
    return f"gw-{secrets.token_hex(16)}"


def _how(error: Exception) -> str:
    """What went wrong, in words for a log and a client."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"it takes no connection: {error.os_error.strerror or error.os_error}"
    return str(error) or type(error).__name__


def _whole(answer: dict[str, Any]) -> list[Event]:
    """The answer of a server that streams nothing, as the events that it would be."""
    output = answer.get("output") or []
    text = output if isinstance(output, str) else "".join(map(str, output))
    return [("output", {"chunk": text}), ("completed", answer)]


async def _refusal(response: aiohttp.ClientResponse) -> Exception:
    """What a status other than 200 means."""
    content = (await response.read())[:4000]
    if response.status == 409:
        return Busy()
    if response.status != 422:
        return Broken(f"HTTP {response.status}")
    try:
        details = json.loads(content)["detail"]
        text = "; ".join(f"{detail['loc'][-1]}: {detail['msg']}" for detail in details)
    except (ValueError, KeyError, TypeError, IndexError):
        text = content.decode("utf-8", "replace")
    return Refused(400, text)
