"""Our engine, vLLM and llama.cpp on the same prompts, case by case in turn: the tables of docs/benchmarks.md.

All contenders live as long as the run and take turns, so that a machine's drift meets all. `Watch` tells what share of
the processors others had meanwhile: where it is more than a few percent, the run is worth little.
"""

from __future__ import annotations

import datetime
import platform
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from alpaca.base.load import load_tokenizer
from benchmarks.rivals.contenders import PAIRS, PAUSE, Company, Contender, assemble, say
from benchmarks.rivals.environment import CORES
from benchmarks.rivals.protocol import Question
from benchmarks.serve import PROMPTS, make_adapter

BUSY = 10  # percent of the processors that others may use
BEGINNING = 20  # characters of an answer that are compared


@dataclass(frozen=True)
class Case:
    """`count` answers at once, with `adapters` taking turns (0: the base alone)."""

    count: int
    adapters: int

    @property
    def name(self) -> str:
        kinds = {0: "no adapter", 1: "adapter"}
        return f"{self.count}, {kinds.get(self.adapters, f'{self.adapters} adapters mixed')}"


CASES = (Case(1, 0), Case(1, 1), Case(8, 0), Case(8, 3), Case(16, 0), Case(16, 3), Case(32, 3))


@dataclass
class Found:
    """What the rounds gave: tokens a second by case and contender, and the texts of the warm-up."""

    speeds: dict[tuple[Case, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    texts: dict[tuple[Case, str], list[str]] = field(default_factory=dict)

    def speed(self, case: Case, *names: str) -> float | None:
        """The fastest of `names`, by the median of its rounds; None where none of them took part."""
        return max((statistics.median(self.speeds[case, n]) for n in names if self.speeds.get((case, n))), default=None)


class Watch:
    """Whose processor time it was, turn by turn: the contender's whose turn it is, the waiting ones', or others'."""

    def __init__(self, pids: set[int]) -> None:
        self._pids = pids
        self.seconds = self.waiting = self.others = 0.0

    def turn(self, case: Case, contender: Contender, question: Question, found: Found, warm: bool) -> None:
        """Ask `contender`, and keep what it took."""
        time.sleep(PAUSE)
        before, started = self._used(), time.perf_counter()
        reply = contender.ask(question)
        seconds, after = time.perf_counter() - started, self._used()
        took = {pid: after[pid] - before[pid] for pid in after}
        self.seconds += seconds
        self.waiting += sum(took[pid] for pid in self._pids - {contender.pid})
        self.others += took[0] - sum(took[pid] for pid in self._pids)
        if warm:
            found.speeds[case, contender.name].append(case.count * question["tokens"] / reply["seconds"])
        else:
            found.texts[case, contender.name] = [text.strip() for text in reply["texts"]]

    def _used(self) -> dict[int, float]:
        """Processor seconds so far of each process, and at 0 of the whole machine."""
        import psutil

        whole = psutil.cpu_times()
        used = {0: sum(whole) - whole.idle - getattr(whole, "iowait", 0.0) - getattr(whole, "guest", 0.0)}
        for pid in self._pids:
            times = psutil.Process(pid).cpu_times()
            used[pid] = times.user + times.system
        return used


def compare(base: Path, tokens: int, rounds: int, ggufs: Sequence[Path] = ()) -> None:
    """Measure and print. `ggufs`: files of the base for llama.cpp, instead of those that our export makes."""
    warn_where_busy()
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        adapters = [make_adapter(base, folder / f"adapter-{n}", n) for n in range(3)]
        company = assemble(
            stack, base, lambda count, mixed: ask_for(base, Case(count, mixed), adapters, tokens), ggufs, folder
        )
        found, watch = measure(base, company.contenders, adapters, tokens, rounds)
    show(base, company, found, watch, tokens, rounds)


def warn_where_busy() -> None:
    """Threads that spin until the others of their team are there take many times as long where one of them must wait
    for a processor: rather say so than measure it."""
    import psutil

    busy = psutil.cpu_percent(interval=2)
    if busy > BUSY:
        say(f"other programs use {busy:.0f} % of the processors: better wait until they have ended")


def measure(
    base: Path, contenders: Sequence[Contender], adapters: Sequence[str], tokens: int, rounds: int
) -> tuple[Found, Watch]:
    """In each round every case, in each case every contender that takes part, who is first changing with the round."""
    found, watch = Found(), Watch({contender.pid for contender in contenders})
    for number in range(rounds + 1):
        for case in CASES:
            question = ask_for(base, case, adapters, tokens)
            taking = [contender for contender in contenders if contender.adapters or not case.adapters]
            first = number % len(taking)
            for contender in [*taking[first:], *taking[:first]]:
                watch.turn(case, contender, question, found, warm=number > 0)
        say(f"round {number} of {rounds}" + ("" if number else " (warm-up)"))
    return found, watch


def ask_for(base: Path, case: Case, adapters: Sequence[str], tokens: int) -> Question:
    """The four prompts in turn, and the adapters in turn."""
    tokenizer = load_tokenizer(base)
    texts = [PROMPTS[n % len(PROMPTS)] for n in range(case.count)]
    turns = [[{"role": "user", "content": text}] for text in texts]
    ids = [tokenizer.apply_chat_template(t, add_generation_prompt=True, return_dict=False) for t in turns]
    return {
        "texts": texts,
        "prompts": [list(map(int, prompt)) for prompt in ids],
        "adapters": [adapters[n % case.adapters] if case.adapters else None for n in range(case.count)],
        "tokens": tokens,
    }


# --- output -------------------------------------------------------------------------------------------------------
VLLM_HEAD = ("answers at once", "ours, bf16", "vLLM, bf16", "ours/vLLM")
LLAMA_HEAD = ("answers at once", "weights, ours / theirs", "ours", "llama.cpp", "ours/llama.cpp", "ours/ours in bf16")


def show(base: Path, company: Company, found: Found, watch: Watch, tokens: int, rounds: int) -> None:
    """The two tables, as Markdown."""
    print(f"{datetime.date.today():%-d %B %Y}. {processor()}, {CORES} cores; {'; '.join(company.versions)}.")
    print(f"{base.name}, greedy answers of {tokens} tokens, medians of {rounds} rounds, tokens a second.")
    print("".join(f"{name}: of several settings {best}.\n" for name, best in company.settings.items()))
    print(table(VLLM_HEAD, [against_vllm(found, case) for case in CASES]))
    print(table(LLAMA_HEAD, [against_llama(found, c, own) for c in CASES if not c.adapters for own in PAIRS]))
    share = 100 / (watch.seconds * CORES)
    print(f"While one worked, those waiting had {watch.waiting * share:.1f} % of the processors, and programs that "
          f"have no part in this {max(0.0, watch.others) * share:.1f} %.")  # fmt: skip
    print(f"Answers whose first {BEGINNING} characters are those of ours in bf16: {agreement(found, company)}.")


def against_vllm(found: Found, case: Case) -> list[str]:
    """Where no adapter is asked for, the faster of vLLM with and without room for adapters counts."""
    own, theirs = found.speed(case, "ours bf16"), found.speed(case, "vLLM", "vLLM, adapters")
    return [case.name, number(own), number(theirs), ratio(own, theirs)]


def against_llama(found: Found, case: Case, precision: str) -> list[str]:
    kind = PAIRS[precision]
    own, theirs = found.speed(case, f"ours {precision}"), found.speed(case, f"llama.cpp {kind}")
    gain = ratio(own, found.speed(case, "ours bf16"), "")
    return [case.name, f"{precision} / {kind}", number(own), number(theirs), ratio(own, theirs), gain]


def agreement(found: Found, company: Company) -> str:
    """For each contender the share of its answers that begin like ours in bf16."""
    shares = {}
    for contender in company.contenders[1:]:
        pairs = [
            (text, own)
            for (case, name), texts in found.texts.items() if name == contender.name
            for text, own in zip(texts, found.texts[case, "ours bf16"], strict=True)
        ]  # fmt: skip
        same = sum(text[:BEGINNING] == own[:BEGINNING] for text, own in pairs)
        shares[contender.name] = f"{contender.name} {same} of {len(pairs)}"
    return ", ".join(shares.values())


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def number(speed: float | None) -> str:
    return "–" if speed is None else f"{speed:.0f}"


def ratio(own: float | None, theirs: float | None, bold: str = "**") -> str:
    return "–" if own is None or theirs is None else f"{bold}{own / theirs:.2f}{bold}"


def processor() -> str:
    """Its name, and the instructions that matter for products."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() or platform.machine()
    text = cpuinfo.read_text(encoding="utf-8")
    name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    flags = [
        flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8") if re.search(rf"\b{flag}\b", text)
    ]
    return f"{name[1] if name else platform.machine()} ({', '.join(flags)})"
