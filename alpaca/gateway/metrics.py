"""What a collector of metrics reads at /metrics."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from alpaca.gateway.upstream import Upstream

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SPEEDS = (1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 250, 500)
TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counted in a registry of their own, so that two gateways in a process do not mix."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "alpaca_requests", "Requests for an answer, by model and by how they ended.", ["model", "outcome"],
            registry=registry,
        )  # fmt: skip
        self.queue_length = Gauge("alpaca_queue_length", "Requests that wait for a place.", registry=registry)
        self.queue_seconds = Histogram(
            "alpaca_queue_seconds", "How long requests waited for a place.", buckets=SECONDS, registry=registry
        )
        self.first_token = Histogram(
            "alpaca_first_token_seconds", "From a request to the first text of its answer.", ["model"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.speed = Histogram(
            "alpaca_tokens_per_second", "Tokens per second of an answer, from its first text on.", ["model"],
            buckets=SPEEDS, registry=registry,
        )  # fmt: skip
        self.tokens_in = Counter("alpaca_prompt_tokens", "Tokens of prompts.", ["model"], registry=registry)
        self.tokens_out = Counter("alpaca_answer_tokens", "Tokens of answers.", ["model"], registry=registry)
        self.well = Gauge("alpaca_upstream_up", "1 while a server is well.", ["upstream"], registry=registry)
        self.places = Gauge(
            "alpaca_upstream_places", "Requests that a server is given at a time.", ["upstream"], registry=registry
        )
        self.taken = Gauge("alpaca_upstream_taken", "Places that are taken.", ["upstream"], registry=registry)

    def text(self, waiting: int, upstreams: Iterable[Upstream]) -> bytes:
        """All of them as they are now."""
        self.queue_length.set(waiting)
        for upstream in upstreams:
            self.well.labels(upstream.url).set(upstream.well)
            self.places.labels(upstream.url).set(upstream.places)
            self.taken.labels(upstream.url).set(upstream.taken)
        return generate_latest(self.registry)
