"""Who takes part in the comparison of engines, each opened once: ours in every precision, vLLM, and llama.cpp."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from alpaca.base.precision import PRECISIONS
from alpaca.serving.composition import BASE_ALONE
from alpaca.serving.engine import Engine
from alpaca.serving.inputs import request_from_inputs
from alpaca.serving.limits import EngineLimits
from alpaca.serving.loading import load_base, open_engine
from alpaca.serving.together import answers
from benchmarks.rivals.environment import ENVIRONMENTS, ROOT, command
from benchmarks.rivals.protocol import Question, Ready, Reply
from benchmarks.rivals.worker import Worker

PAIRS = {"bf16": "BF16", "int8": "Q8_0", "int4": "Q4_1"}
"""Our precisions and llama.cpp's of about the same bytes a weight."""
MADE = ("BF16", "Q8_0")  # by our export; Q4_1 is the file that the base came as
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


def assemble(stack: ExitStack, base: Path, adapters: Sequence[str], ggufs: Sequence[Path], folder: Path) -> Company:
    """Open all that there is; `stack` closes it. `ggufs` (else those made here, in `folder`) are for llama.cpp."""
    contenders = [ours(stack, base, precision, folder) for precision in PAIRS if precision in PRECISIONS]
    files = {kind: path for path in ggufs or gguf_files(base, folder) if (kind := gguf_kind(path))}
    workers = {
        "vLLM, adapters": vllm_worker(base, len(adapters)),
        "vLLM": vllm_worker(base, 0),
        **{f"llama.cpp {kind}": llama_worker(path) for kind, path in files.items()},
    }
    for worker in workers.values():
        stack.callback(worker.close)
    versions = []
    for name, worker in workers.items():
        version = _wait(name, worker)["version"]
        versions += [version] if version not in versions else []
        contenders.append(Contender(name, worker.ask, worker.pid, "adapters" in name))
    return Company(contenders, versions)


def vllm_worker(base: Path, adapters: int) -> Worker:
    """vLLM with room for `adapters`, or without LoRA at all: then it compiles the model."""
    settings = {"base": str(base.resolve()), "adapters": str(adapters)}
    return Worker(
        "vLLM", command("vllm", "vllm_worker", settings),
        VLLM_CPU_KVCACHE_SPACE="2", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1",
        VLLM_CACHE_ROOT=str(ENVIRONMENTS / "vllm" / "cache"), VLLM_LOGGING_LEVEL="WARNING",
    )  # fmt: skip


def llama_worker(model: Path) -> Worker:
    return Worker("llama.cpp", command("llama", "llama_worker", {"model": str(model)}))


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


def _wait(name: str, worker: Worker) -> Ready:
    started = time.perf_counter()
    ready = worker.ready()
    say(f"{name}: ready after {time.perf_counter() - started:.0f} s")
    return ready
