"""What the gateway adds to Cog's server, and how many people one container serves. `make bench-gateway` runs it.

Both are asked in turn in one run, the same questions with the same seeds, so that the ratios hold on a machine that is
also busy otherwise. Times are seen by the client.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from alpaca.cogserver.server import Server, free_port  # noqa: E402
from alpaca.errors import end_as_interrupted, exit_on_error  # noqa: E402

QUESTIONS = [
    "How long do alpacas live?", "What should I think of before winter?", "Tell me about the herd.",
    "How much hay does an alpaca eat?", "What is a cria?", "Why do alpacas hum?", "How is fleece sorted?",
    "Can alpacas live with sheep?",
]  # fmt: skip

MARKS = (b'"chunk":"', b'"content": "')  # what stands before a text, in Cog's events and in the gateway's
BUSY_SECONDS = 30.0  # how long a refused question is sent again


@dataclass(frozen=True)
class Answer:
    """One answer as its client saw it; times in seconds."""

    first: float
    total: float
    tokens: int


@dataclass(frozen=True)
class Target:
    """Where to ask, and in which words."""

    name: str
    url: str
    model: str | None
    """None: Cog's own words."""
    process: psutil.Process | None = None
    """The gateway's."""

    def request(self, number: int, tokens: int) -> tuple[str, dict[str, Any], dict[str, str]]:
        question = f"{number}: {QUESTIONS[number % len(QUESTIONS)]}"
        settings = {"max_tokens": tokens, "min_tokens": tokens, "seed": number, "temperature": 0.7}
        messages = [{"role": "user", "content": question}]
        if self.model is None:
            body: dict[str, Any] = {"input": {"messages": messages, "adapter": "none", **settings}}
            return f"{self.url}/predictions", body, {"Accept": "text/event-stream"}
        return f"{self.url}/v1/chat/completions", {"model": self.model, "messages": messages, **settings,
                                                   "stream": True}, {}  # fmt: skip


async def ask(http: httpx.AsyncClient, target: Target, number: int, tokens: int) -> Answer:
    """Stream one answer. The first text is the first event that holds any. Cog refuses one of two that come in the
    same microsecond as if every place were taken (HTTP 409), so a refused one is sent again at once."""
    url, body, headers = target.request(number, tokens)
    started = time.perf_counter()
    while True:
        async with http.stream("POST", url, json=body, headers=headers) as response:
            if response.status_code == 409 and time.perf_counter() < started + BUSY_SECONDS:
                continue
            if response.status_code != 200:
                said = (await response.aread()).decode()[:300]
                raise SystemExit(f"{target.name}: HTTP {response.status_code}: {said}")
            first = 0.0
            async for data in response.aiter_raw():
                if not first and any(mark in data.replace(b'"content": ""', b"") for mark in MARKS):
                    first = time.perf_counter() - started
            return Answer(first, time.perf_counter() - started, tokens)


async def many(
    http: httpx.AsyncClient, target: Target, people: int, tokens: int, start: int
) -> tuple[float, list[Answer]]:
    """So many people at the same time, one question each: tokens per second together, and the answers."""
    started = time.perf_counter()
    answers = await asyncio.gather(*(ask(http, target, start + n, tokens) for n in range(people)))
    return people * tokens / (time.perf_counter() - started), list(answers)


@contextmanager
def started(base: Path) -> Iterator[tuple[Target, Target]]:
    """Cog's server on the base, and a gateway in front of it."""
    environment = {"BASE_MODEL": str(base), "COG_WEIGHTS": "", "COG_LOG_LEVEL": "error"}
    with Server(project=ROOT, environment=environment) as server:
        server.wait_ready()
        port = free_port()
        command = [sys.executable, "-m", "alpaca.gateway", "--upstream", server.url, "--port", str(port)]
        gateway = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, env=dict(os.environ))
        try:
            url = f"http://127.0.0.1:{port}"
            yield (
                Target("Cog's server", server.url, None),
                Target("the gateway", url, _model(url), psutil.Process(gateway.pid)),
            )
        finally:
            gateway.terminate()
            gateway.wait()


def _model(url: str) -> str:
    """The base's name, once the gateway knows it."""
    for _ in range(600):
        try:
            response = httpx.get(f"{url}/v1/models")
            if response.status_code == 200:
                return str(response.json()["data"][0]["id"])
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit("the gateway did not come up")


@asynccontextmanager
async def client() -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=600, limits=limits, trust_env=False) as http:
        yield http


async def added_time(targets: tuple[Target, Target], rounds: int) -> tuple[float, float, float]:
    """Medians of the time to the first text of both, and of the differences within a round; seconds."""
    async with client() as http:
        pairs = []
        for number in range(rounds + 1):
            order = targets if number % 2 else targets[::-1]
            seen = {target.name: (await ask(http, target, 1000 + number, 2)).first for target in order}
            if number:  # the first opens the connections
                pairs.append([seen[target.name] for target in targets])
    differences = [through - direct for direct, through in pairs]
    return (*(statistics.median(column) for column in zip(*pairs, strict=True)), statistics.median(differences))


async def throughput(
    targets: tuple[Target, Target], rounds: int, people: int, tokens: int
) -> tuple[float, float, float, float]:
    """Tokens per second of both, the median of their ratios within a round, and the gateway's processor seconds for
    each answer."""
    before = _busy(targets[1])
    async with client() as http:
        rates: list[list[float]] = []
        for number in range(rounds + 1):
            order = targets if number % 2 else targets[::-1]
            seen = {t.name: (await many(http, t, people, tokens, 2000 + number * people))[0] for t in order}
            if number:
                rates.append([seen[target.name] for target in targets])
    ratios = [through / direct for direct, through in rates]
    spent = (_busy(targets[1]) - before) / ((rounds + 1) * people)
    return (*(statistics.median(column) for column in zip(*rates, strict=True)), statistics.median(ratios), spent)


def _busy(target: Target) -> float:
    """Processor seconds of the gateway until now."""
    assert target.process is not None
    times = target.process.cpu_times()
    return float(times.user + times.system)


async def crowd(target: Target, sizes: list[int], tokens: int) -> None:
    """The table of how many people one container serves."""
    print(f"\nPeople who ask at the same time, an answer of {tokens} tokens each, through the gateway:\n")
    print("| people | tokens/s each | tokens/s together | first text, median | first text, slowest |")
    print("| --- | --- | --- | --- | --- |")
    async with client() as http:
        for size in sizes:
            together, answers = await many(http, target, size, tokens, 9000 + size)
            each = statistics.median(a.tokens / max(a.total - a.first, 1e-9) for a in answers)
            firsts = sorted(answer.first for answer in answers)
            print(f"| {size} | {each:.1f} | {together:.1f} | {statistics.median(firsts):.2f} s | {firsts[-1]:.2f} s |",
                  flush=True)  # fmt: skip


@exit_on_error
def main() -> None:
    end_as_interrupted()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base_model", type=Path, default=ROOT / "weights" / "smollm2-135m-instruct")
    parser.add_argument(
        "--rounds", type=int, default=20, help="of the first text; throughput has a fifth (default: 20)"
    )
    parser.add_argument("--people", type=int, default=16, help="at a time, for throughput (default: 16)")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer (default: 64)")
    parser.add_argument("--crowd", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32, 64], help="sizes of the table")
    given = parser.parse_args()
    with started(given.base_model.resolve()) as targets:
        direct, through, added = asyncio.run(added_time(targets, given.rounds))
        print(f"first text, median of {given.rounds}: Cog's server {1000 * direct:.1f} ms, through the gateway "
              f"{1000 * through:.1f} ms; added within a round, median: {1000 * added:.1f} ms", flush=True)  # fmt: skip
        rounds = max(1, given.rounds // 5)
        direct, through, kept, spent = asyncio.run(throughput(targets, rounds, given.people, given.tokens))
        print(f"tokens per second, {given.people} people, median of {rounds}: Cog's server {direct:.1f}, through the "
              f"gateway {through:.1f}; kept within a round, median: {100 * kept:.1f} %; the gateway's own processor "
              f"time for an answer of {given.tokens} tokens: {1000 * spent:.1f} ms", flush=True)  # fmt: skip
        asyncio.run(crowd(targets[1], given.crowd, given.tokens))
    print(json.dumps({"added_ms": round(1000 * added, 2), "kept": round(kept, 4)}), file=sys.stderr)


if __name__ == "__main__":
    main()
