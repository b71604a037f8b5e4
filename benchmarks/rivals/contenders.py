"""Who takes part in the comparison of engines, each opened once: ours in every precision, vLLM, and llama.cpp."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from ctypes.util import find_library
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from alpaca.base.precision import SERVED
from alpaca.serving.composition import BASE_ALONE
from alpaca.serving.engine import Engine
from alpaca.serving.inputs import request_from_inputs
from alpaca.serving.limits import EngineLimits
from alpaca.serving.loading import load_base, open_engine
from alpaca.serving.together import answers
from benchmarks.rivals.environment import ENVIRONMENTS, ROOT, command
from benchmarks.rivals.protocol import Question, Reply
from benchmarks.rivals.worker import Worker

PAIRS = {"bf16": "BF16", "int8": "Q8_0", "int4": "Q4_1"}
"""Our precisions and llama.cpp's of about the same bytes a weight."""
MADE = ("BF16", "Q8_0")  # by our export; Q4_1 is the file that the base came as
TRIES = 2  # of each setting
PAUSE = 0.3  # seconds before a turn, in which the threads of the last one fall asleep
PLACES, CONTEXT = 32, 1024  # answers at once; tokens of a prompt and its answer


@dataclass(frozen=True)
class Contender:
    """An engine that waits for its turn."""

    name: str
    ask: Callable[[Question], Reply]
    pid: int
    adapters: bool
    """Takes part where answers have adapters."""


@dataclass(frozen=True)
class Company:
    """All contenders, and what their packages are."""

    contenders: list[Contender]
    versions: list[str]
    settings: dict[str, str] = field(default_factory=dict)
    """What each rival takes part with: of several settings the fastest."""


def assemble(
    stack: ExitStack, base: Path, ask_of: Callable[[int, int], Question], ggufs: Sequence[Path], folder: Path
) -> Company:
    """Open all that there is; `stack` closes it.

    `ask_of` makes the question for so many answers with so many adapters. `ggufs` are for llama.cpp, instead of those
    that are made in `folder`.
    """
    company = Company([ours(stack, base, precision, folder) for precision in PAIRS if precision in SERVED], [])
    plain, mixed = [ask_of(1, 0), ask_of(8, 0)], [ask_of(1, 1), ask_of(8, 3)]
    join(company, stack, "vLLM, adapters", vllm_settings(base, 3), mixed)
    join(company, stack, "vLLM", vllm_settings(base, 0), plain)
    for path in ggufs or gguf_files(base, folder):
        if kind := gguf_kind(path):
            join(company, stack, f"llama.cpp {kind}", llama_settings(path), plain)
    return company


def join(
    company: Company, stack: ExitStack, name: str, openers: dict[str, Callable[[], Worker]], trial: Sequence[Question]
) -> None:
    """Of one rival under several settings, the one that answers `trial` in the least time takes part.

    They are opened one after another: two that load at once on the same cores, their threads spinning, take many times
    as long.
    """
    workers, versions = {}, {}
    for setting, opener in openers.items():
        started = time.perf_counter()
        workers[setting] = worker = opener()
        stack.callback(worker.close)
        versions[setting] = worker.ready()["version"]
        say(f"{name}, {setting}: ready after {time.perf_counter() - started:.0f} s")
    seconds = dict.fromkeys(workers, float("inf"))
    for _ in range(TRIES):
        for setting, worker in workers.items():
            time.sleep(PAUSE)
            seconds[setting] = min(seconds[setting], sum(worker.ask(question)["seconds"] for question in trial))
    best = min(workers, key=seconds.__getitem__)
    tried = ", ".join(f"{setting} {took:.2f} s" for setting, took in seconds.items())
    say(f"{name}: takes part with {best} (the quickest at {len(trial)} questions: {tried})")
    for setting, worker in workers.items():
        if setting != best:
            worker.close()
    company.contenders.append(Contender(name, workers[best].ask, workers[best].pid, "adapters" in name))
    company.settings[name] = best
    if versions[best] not in company.versions:
        company.versions.append(versions[best])


def vllm_settings(base: Path, adapters: int) -> dict[str, Callable[[], Worker]]:
    """How vLLM is opened, with room for `adapters`, or without LoRA at all: then it compiles the model.

    It preloads torch's own libgomp; its documentation advises Intel's OpenMP, which it depends on, and tcmalloc, which
    is taken where the system has it.
    """
    preloads = [str(path) for path in ENVIRONMENTS.glob("vllm/lib/libiomp5.so")]
    preloads += [found for found in [find_library("tcmalloc_minimal")] if found]
    cache = ENVIRONMENTS / "vllm" / "cache"
    settings = {"base": str(base.resolve()), "adapters": str(adapters)}
    fixed = {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GB
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_CACHE_ROOT": str(cache),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
    }
    tried = {"libgomp": {}, **({"libiomp5": {"LD_PRELOAD": ":".join(preloads)}} if preloads else {})}
    line = command("vllm", "vllm_worker", settings)
    return {name: partial(Worker, f"vLLM, {name}", line, **fixed, **more) for name, more in tried.items()}


def llama_settings(model: Path) -> dict[str, Callable[[], Worker]]:
    """How llama.cpp is opened."""
    settings = {"model": str(model.resolve())}
    lines = {
        "flash attention": command("llama", "llama_worker", settings | {"flash": "1"}),
        "plain attention": command("llama", "llama_worker", settings | {"flash": "0"}),
    }
    return {name: partial(Worker, f"llama.cpp, {model.name}, {name}", line) for name, line in lines.items()}


def ours(stack: ExitStack, base: Path, precision: str, roots: Path) -> Contender:
    """Our engine in `precision`, in this process."""
    limits = EngineLimits(concurrency=PLACES, context=CONTEXT, roots=(roots,))
    engine = open_engine(load_base(str(base), precision, say=say), limits=limits, say=say)
    stack.callback(engine.close)
    return Contender(f"ours {precision}", lambda question: _ask(engine, question), os.getpid(), precision == "bf16")


def _ask(engine: Engine, question: Question) -> Reply:
    length = question["tokens"]
    started = time.perf_counter()
    requests = [
        request_from_inputs(
            prompt=text, adapter=adapter or BASE_ALONE, temperature=0.0, max_tokens=length, min_tokens=length,
            prompt_template="chat",
        )
        for text, adapter in zip(question["texts"], question["adapters"], strict=True)
    ]  # fmt: skip
    said = [answer.text for answer in answers(engine, requests)]
    return Reply(seconds=time.perf_counter() - started, texts=said)


# --- GGUF files ---------------------------------------------------------------------------------------------------
def gguf_kind(path: Path) -> str:
    """BF16, Q8_0 or Q4_1, as the file's name says; else nothing."""
    found = re.search(r"(BF16|Q8_0|Q4_1)\.gguf$", path.name, re.IGNORECASE)
    return found[1].upper() if found else ""


def gguf_files(base: Path, folder: Path) -> list[Path]:
    """The base as `alpaca.export` writes it, in `folder`, and the 4-bit file that it came as, where that is."""
    made = []
    for kind in MADE:
        out = folder / f"gguf-{kind}"
        export = ["gguf", "--base_model", str(base), "--outtype", kind, "--output_dir", str(out)]
        subprocess.run([sys.executable, "-m", "alpaca.export", *export], cwd=ROOT, check=True, stdout=sys.stderr)
        made += [path.rename(path.with_name(f"{base.name}-{kind}.gguf")) for path in out.glob("*.gguf")]
    return [*made, *sorted((ROOT / "unconverted-weights").glob("*Q4_1.gguf"))]


def say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)
