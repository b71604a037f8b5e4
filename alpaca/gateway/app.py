"""The gateway as an ASGI application: its routes, and what each of them does."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from alpaca.gateway.asked import Asked, read_chat, read_completion, read_json
from alpaca.gateway.call import Call, Piece
from alpaca.gateway.caller import Caller, Keys, address_of
from alpaca.gateway.connections import Connections
from alpaca.gateway.door import Door
from alpaca.gateway.endpoint import Endpoint, EventStream, Handler, refusal
from alpaca.gateway.form import DONE, Form, error_event, model_card
from alpaca.gateway.metrics import TEXT_TYPE, Metrics
from alpaca.gateway.page import find_report, page_response, report_response
from alpaca.gateway.pool import Pool
from alpaca.gateway.queue import Queue
from alpaca.gateway.refusals import NOT_FOUND, RATE, SERVER, Refused, of_upstream
from alpaca.gateway.routes import openapi
from alpaca.gateway.served import DESCRIBES, Model
from alpaca.gateway.settings import Settings
from alpaca.gateway.upstream import Broken, Busy, Upstream
from alpaca.words import shown

log = logging.getLogger("alpaca.gateway")
BEARER = re.compile(r"Bearer\s+(\S+)\s*", re.IGNORECASE)


class Gateway:
    """What all requests share. It is made where an event loop runs."""

    def __init__(self, settings: Settings, http: Connections) -> None:
        """Raises BadGatewaySetting for a file of keys that can't be read."""
        self.settings = settings
        self.keys = Keys(settings.keys, log.info) if settings.keys is not None else None
        self.metrics = Metrics()
        self.queue = Queue(settings.queue, settings.queue_seconds)
        upstreams = [Upstream(url, http, name=settings.name, places=settings.places) for url in settings.upstreams]
        self.pool = Pool(upstreams, say=log.info, changed=self._changed)
        self._ready = False
        self.in_flight: Counter[str] = Counter()

    def _changed(self) -> None:
        self.queue.pump()
        if self.pool.well and not self._ready:
            self._ready = True
            log.info("ready: the page is at http://%s:%d", self.settings.host, self.settings.port)

    # --- who asks ---
    def caller(self, request: Request) -> Caller:
        """Raises Refused with 401 where keys are asked for."""
        if self.keys is None:
            return Caller(address_of(request.client.host if request.client else None))
        found = BEARER.fullmatch(request.headers.get("authorization", ""))
        return self.keys.caller(found[1] if found else "")

    @contextmanager
    def admitted(self, caller: Caller) -> Iterator[None]:
        """While one of a caller's requests is here. Raises Refused where it has as many as it may."""
        if caller.in_flight is not None and self.in_flight[caller.name] >= caller.in_flight:
            raise Refused(
                429, f"{caller.name} has {caller.in_flight} requests in work, as many as its key allows",
                kind=RATE, code="too_many_requests", retry_after=2,
            )  # fmt: skip
        self.in_flight[caller.name] += 1
        try:
            yield
        finally:
            self.in_flight[caller.name] -= 1
            if not self.in_flight[caller.name]:
                del self.in_flight[caller.name]

    # --- models ---
    async def list_models(self, request: Request, body: bytes) -> Response:
        caller = self.caller(request)
        models = self.pool.models()
        if not models:
            raise self.pool.nobody()
        cards = [self._card(model) for model in models.values() if caller.may_ask(model)]
        return JSONResponse({"object": "list", "data": cards})

    def _card(self, model: Model) -> dict[str, Any]:
        there = find_report(self.settings.reports, model.root) is not None
        return model_card(model) | ({"report": f"/report/{model.root}"} if there else {})

    async def show_model(self, request: Request, body: bytes) -> Response:
        caller = self.caller(request)
        model = self.pool.find(request.path_params["name"])
        if not caller.may_ask(model):
            raise _not_allowed(caller, model.root)
        return JSONResponse(self._card(model))

    # --- answers ---
    async def chat(self, request: Request, body: bytes) -> Response:
        return await self._answer(request, read_chat(read_json(body)))

    async def complete(self, request: Request, body: bytes) -> Response:
        return await self._answer(request, read_completion(read_json(body)))

    def _call(self, request: Request, asked: Asked, caller: Caller) -> Call:
        """Raises Refused for a model that is not there or not allowed, and for what it can't be asked."""
        model = self.pool.find(asked.model)
        if not caller.may_ask(model):
            raise _not_allowed(caller, model.root)
        for upstream in self.pool.having(asked.model)[:1]:
            assert upstream.served is not None
            upstream.served.cog_inputs(asked, model)
        return Call(asked, model, caller)

    async def _answer(self, request: Request, asked: Asked) -> Response:
        caller = self.caller(request)
        try:
            call = self._call(request, asked, caller)
        except Refused:
            self.metrics.requests.labels("none", "refused").inc()
            raise
        events = self._events(call)
        if not asked.stream:
            async with aclosing(events):  # type: ignore[type-var]
                texts = [""] * asked.n
                async for together in events:
                    for index, text in together:
                        texts[index] += text
            return JSONResponse(Form(call).whole(texts), headers=_headers(call))
        # Nothing is sent before the first text is there, so that what goes wrong until then has its true status.
        first = await anext(events, None)
        return EventStream(self._stream(call, first, events), _headers(call))

    async def _events(self, call: Call) -> AsyncIterator[list[Piece]]:
        """The pieces of an answer, with its end counted and logged."""
        said: list[str] = []
        outcome = "gone"
        try:
            with self.admitted(call.caller):
                async with aclosing(call.pieces(self.pool, self.queue)) as answer:  # type: ignore[type-var]
                    async for together in answer:
                        if self.settings.log_prompts:
                            said += [text for _, text in together]
                        yield together
            outcome = "ok"
        except Refused as refused:
            outcome = {429: "busy", 503: "unavailable"}.get(
                refused.status, "error" if refused.status > 499 else "refused"
            )
            raise
        finally:
            self._count(call, outcome, "".join(said))

    async def _stream(
        self, call: Call, first: list[Piece] | None, rest: AsyncIterator[list[Piece]]
    ) -> AsyncIterator[bytes]:
        form = Form(call)
        yield form.pieces([(0, ""), *(first or [])])
        try:
            async with aclosing(rest):  # type: ignore[type-var]
                async for together in rest:
                    yield form.pieces(together)
        except Refused as refused:
            yield error_event(refused)
            return
        ends = [form.last(index) for index in range(call.asked.n)]
        yield b"".join([*ends, form.usage() if call.asked.include_usage else b"", DONE])

    def _count(self, call: Call, outcome: str, said: str) -> None:
        """Metrics and the line of the log. Names in metrics are those of models there are: strengths are left out."""
        metrics, label = self.metrics, call.model.root if call.model.root in self.pool.models() else "several"
        metrics.requests.labels(label, outcome).inc()
        metrics.queue_seconds.observe(call.waited)
        usage, speed = call.usage or {}, 0.0
        if call.first is not None:
            metrics.first_token.labels(label).observe(call.first)
        if usage:
            metrics.tokens_in.labels(label).inc(usage["prompt_tokens"])
            metrics.tokens_out.labels(label).inc(usage["completion_tokens"])
            speed = call.figures.get("tokens_per_second", 0.0)
            metrics.speed.labels(label).observe(speed)
        log.info(
            "%s asked %s: %s; waited %.3f s, first text %s, %s tokens in, %s out, %.1f tokens/s",
            call.caller.name, shown(call.asked.model, 80), outcome, call.waited,
            "never" if call.first is None else f"after {call.first:.3f} s",
            usage.get("prompt_tokens", "?"), usage.get("completion_tokens", "?"), speed,
        )  # fmt: skip
        if self.settings.log_prompts:
            log.info("prompt %r answer %r", dict(call.asked.inputs), said)

    async def show_prompt(self, request: Request, body: bytes) -> Response:
        """The text that the model would see of a chat request."""
        caller = self.caller(request)
        asked = read_chat(read_json(body))
        call = self._call(request, asked, caller)

        def able() -> list[Upstream]:
            return self.pool.having(asked.model)

        with self.admitted(caller):
            if not able():
                raise self.pool.nobody()
            async with self.queue.turn(caller.name, able) as turn:
                served = turn.upstream.served
                if served is None or not served.describes:
                    raise Refused(501, "this server can't show its prompts", kind=SERVER)
                try:
                    answer = await turn.upstream.ask({**served.cog_inputs(asked, call.model), DESCRIBES: "prompt"})
                except (Broken, Busy):
                    raise self.pool.nobody() from None
        if answer.get("status") != "succeeded":
            raise of_upstream(str(answer.get("error") or ""))
        return Response("".join(answer["output"]), media_type="application/json")

    # --- for operators ---
    async def health(self, request: Request, body: bytes) -> Response:
        """200 while at least one server is well, else 503: for load balancers."""
        well = sum(upstream.well for upstream in self.pool.upstreams)
        said = {"status": "ok" if well else "no server is ready", "ready": well, "servers": len(self.pool.upstreams)}
        return JSONResponse(said, 200 if well else 503)

    async def show_metrics(self, request: Request, body: bytes) -> Response:
        self.caller(request)
        return Response(self.metrics.text(len(self.queue), self.pool.upstreams), media_type=TEXT_TYPE)

    async def describe(self, request: Request, body: bytes) -> Response:
        return JSONResponse(openapi(self.settings.body_bytes))

    # --- the page ---
    async def page(self, request: Request, body: bytes) -> Response:
        return page_response()

    async def report(self, request: Request, body: bytes) -> Response:
        """The report of an adapter, where the gateway was given the folder."""
        name = request.path_params["name"]
        return report_response(self.settings.reports if name in self.pool.models() else None, name)


def _headers(call: Call) -> dict[str, str]:
    return {"X-Queue-Position": str(call.position)}


def _not_allowed(caller: Caller, model: str) -> Refused:
    """The same status as for a model that is not there."""
    there = ", ".join(caller.models or ()) or "none"
    return Refused(
        404, f"the key of {caller.name} may not ask {shown(model, 80)!r}. It may ask: {there}",
        kind=NOT_FOUND, code="model_not_found", param="model",
    )  # fmt: skip


async def _no_route(request: Request, error: Exception) -> Response:
    """What leads nowhere, in the form of all refusals."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        says = f"{request.method} is not for this path: {(error.headers or {}).get('Allow', 'another method is')}"
        return refusal(Refused(405, says))
    says = f"there is nothing at {shown(request.url.path, 80)}; GET /openapi.json lists the routes"
    return refusal(Refused(error.status_code, says, kind=NOT_FOUND))


def create_app(settings: Settings) -> Starlette:
    """The application; servers are looked at from its start to its end."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with Connections() as http:
            gateway = Gateway(settings, http)
            app.state.gateway = gateway
            watches = [asyncio.create_task(gateway.pool.watch(upstream)) for upstream in gateway.pool.upstreams]
            try:
                yield
            finally:
                for watch in watches:
                    watch.cancel()

    def route(path: str, name: str, method: str) -> Route:
        async def handler(request: Request, body: bytes) -> Response:
            bound: Handler = getattr(request.app.state.gateway, name)
            return await bound(request, body)

        return Route(path, Endpoint(handler, settings.body_bytes), methods=[method])

    middleware = [Middleware(Door, hosts=settings.hosts)]
    if settings.cors:
        exposed = ["X-Queue-Position", "Retry-After"]
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(settings.cors),
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type"],
                expose_headers=exposed,
            )
        )
    return Starlette(
        routes=[
            route("/v1/models", "list_models", "GET"),
            route("/v1/models/{name:path}", "show_model", "GET"),
            route("/v1/chat/completions", "chat", "POST"),
            route("/v1/completions", "complete", "POST"),
            route("/prompt", "show_prompt", "POST"),
            route("/health", "health", "GET"),
            route("/metrics", "show_metrics", "GET"),
            route("/openapi.json", "describe", "GET"),
            route("/report/{name}", "report", "GET"),
            route("/", "page", "GET"),
        ],
        middleware=middleware,
        exception_handlers={HTTPException: _no_route},
        lifespan=lifespan,
    )
