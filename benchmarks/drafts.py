"""What guessing the next tokens gains and costs: the same answers with and without it, in one run.

    python benchmarks/drafts.py              the table of docs/benchmarks.md
    python benchmarks/drafts.py --rounds 1   a quick look

Two engines on the same base take turns, answer by answer; the median of the rounds counts. Nothing that was computed
for one answer is used for another, so each has its whole prompt to compute.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from alpaca.base.find import resolve_base  # noqa: E402
from alpaca.serving.engine import Engine  # noqa: E402
from alpaca.serving.inputs import request_from_inputs  # noqa: E402
from alpaca.serving.limits import EngineLimits  # noqa: E402
from alpaca.serving.loading import load_base, open_engine  # noqa: E402
from alpaca.serving.together import answers  # noqa: E402

LIBRARY = (
    "The town library opens at nine in the morning and closes at six in the evning. On Saturdays it closes at two. "
    "Members may borrow up to eight books for three weeks, and children under twelve need a card that a parent has "
    "signed. Lost books are charged at the price of a new copy. The reading room on the first floor is kept quiet, and "
    "telephones must be turned off there."
)
ALPACAS = (
    "Alpacas are kept for their wool, which is soft and warm. A grown alpaca wieghs between fifty and eighty kilograms "
    "and eats about two kilograms of hay each day. They live in herds and become unhappy when they are alone. Once a "
    "year, in spring, they are shorn; a good animal gives three kilograms of wool. Their feet are soft, so they do "
    "little harm to the grass they walk on."
)
PEOPLE = """1. Anna Berg, baker, Oslo, anna@example.org
2. Tom Hill, driver, Leeds, tom@example.org
3. Maria Rossi, teacher, Turin, maria@example.org
4. Jan Novak, painter, Brno, jan@example.org
5. Lucy Stone, nurse, York, lucy@example.org
6. Omar Said, cook, Cairo, omar@example.org"""
CODE = """def total(prices, tax):
    result = 0
    for price in prices:
        result = result + price
    result = result + result * tax
    return result


def cheapest(prices):
    best = prices[0]
    for price in prices:
        if price < best:
            best = price
    return best"""
REPEATING = [
    f"Copy this text and correct spelling mistakes, if there are any:\n\n{ALPACAS}",
    f"Proofread this text. Give the whole text back, corrected:\n\n{LIBRARY}",
    f"Repeat the following text word for word:\n\n{LIBRARY}",
    f"Turn this list into a table with the columns name, job, town and e-mail:\n\n{PEOPLE}",
    f"Write this list again in alphabetical order:\n\n{PEOPLE}",
    f"Extract all sentences about wool from this text, word for word:\n\n{ALPACAS}",
    f"Rename the function `cheapest` to `lowest` in this code and give me the whole file:\n\n```python\n{CODE}\n```",
]
ORDINARY = [
    "What should one look for when buying a used car?",
    "Write a short letter to a friend who moves to another town.",
    "Explain how a bicycle stays upright, for a child of eight years.",
    "What are the advantages and disadvantages of working from home?",
    "Tell me a story about a dragon who is afraid of fire.",
    "Explain the difference between weather and climate.",
    "How do I learn to play the guitar?",
    "What is photosynthesis?",
]


@dataclass
class Case:
    """Prompts whose answers are made, so many `at_once`."""

    name: str
    prompts: list[str]
    at_once: int
    temperature: float
    speeds: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    """Tokens a second of every round, with guesses and without."""
    said: int = 0
    """Tokens, with guesses; of these, how many were guessed, and how many of the guesses were right."""
    guessed: int = 0
    right: int = 0

    def run(self, engines: dict[bool, Engine], number: int, tokens: int) -> None:
        """Every prompt once; the engines take turns after each, or after as many as are answered at once."""
        said, took = {True: 0, False: 0}, {True: 0.0, False: 0.0}
        before = engines[True].stats()
        for first in range(0, max(len(self.prompts), self.at_once), self.at_once):
            requests = [self._request(first + place, number, tokens) for place in range(self.at_once)]
            for drafts in (False, True) if (first // self.at_once + number) % 2 else (True, False):
                started = time.perf_counter()
                said[drafts] += sum(a.usage.output_tokens for a in answers(engines[drafts], requests) if a.usage)
                took[drafts] += time.perf_counter() - started
        after = engines[True].stats()
        self.said += said[True]
        self.guessed += after.guessed - before.guessed
        self.right += after.right - before.right
        for drafts, speeds in self.speeds.items():
            speeds.append(said[drafts] / took[drafts])

    def _request(self, number: int, seed: int, tokens: int) -> Any:
        return request_from_inputs(
            prompt=self.prompts[number % len(self.prompts)], temperature=self.temperature, max_tokens=tokens,
            seed=1000 * seed + number, adapter="none", prompt_template="chat",
        )  # fmt: skip

    def line(self) -> str:
        """Medians, without the first round, which warms up. The ratio is that of each round's two runs."""
        ours, plain = self.speeds[True][1:], self.speeds[False][1:]
        ratio = statistics.median(a / b for a, b in zip(ours, plain, strict=True))
        speeds = f"{statistics.median(plain):8.1f} {statistics.median(ours):8.1f} {ratio:6.2f}"
        return f"{self.name:48} {speeds} {self.guessed / self.said:8.2f} {self.right / self.said:6.2f}"


def cases() -> list[Case]:
    return [
        Case("1 answer that repeats its input, greedy", REPEATING, 1, 0.0),
        Case("1 answer that repeats its input, drawn", REPEATING, 1, 0.7),
        Case("1 ordinary answer, greedy", ORDINARY, 1, 0.0),
        Case("1 ordinary answer, drawn", ORDINARY, 1, 0.7),
        Case("4 answers that repeat their input, greedy", REPEATING, 4, 0.0),
        Case("8 ordinary answers, drawn", ORDINARY, 8, 0.7),
        Case("16 ordinary answers, drawn", ORDINARY, 16, 0.7),
    ]


def open_one(base: Path, precision: str, drafts: bool) -> Engine:
    limits = EngineLimits(concurrency=16, context=1024, separate=True, drafts=drafts)
    return open_engine(load_base(str(base), precision, say=_say), limits=limits, say=_say)


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base_model", help="default: $BASE_MODEL, else the only base in weights/")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--tokens", type=int, default=128, help="of every answer at most (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    options = parser.parse_args()
    base = resolve_base(options.base_model, ROOT / "weights")
    engines = {drafts: open_one(base, options.precision, drafts) for drafts in (False, True)}
    found = cases()
    for number in range(options.rounds + 1):
        for case in found:
            case.run(engines, number, options.tokens)
        _say(f"round {number} of {options.rounds}" + ("" if number else " (warm-up)"))
    print(f"{base.name}, {options.precision}: tokens/s without guesses and with them; guessed and right for each token")
    print(f"{'':48} {'without':>8} {'with':>8} {'ratio':>6} {'guessed':>8} {'right':>6}")
    for case in found:
        print(case.line())
    for engine in engines.values():
        engine.close()


if __name__ == "__main__":
    main()
