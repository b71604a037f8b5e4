"""How well `python -m alpaca.data FILE --base_model BASE` finds answers that slipped to another row.

    python benchmarks/misfits.py                                            the shipped sets: some minutes on two cores
    python benchmarks/misfits.py --sets data/alpacas.jsonl --rows 0         all rows of one of them
    python benchmarks/misfits.py --sets alpaca_en_700.json --rows 120       another file, 120 rows of it

A tenth of the answers of a set stand with another row's question, drawn anew a hundred times. `clean` is the share of
rows that are listed where nothing was planted. AUROC is the probability that a planted row scores lower than another
one, by the matter of rows and by the answer's loss alone.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from alpaca.data.misfits import OTHERS, Matter, ask_base, matter_of, sample  # noqa: E402
from alpaca.data.reader import read_examples  # noqa: E402
from alpaca.data.yardstick import open_yardstick  # noqa: E402
from alpaca.progress import say_aside  # noqa: E402

SETS = ["data/alpacas.jsonl", "data/insurance_zh.jsonl", "data/general.jsonl"]
PLANTED, DRAWS, SEED = 0.1, 100, 0
HEAD = f"{'':22}{'rows':>6}{'tokens':>8}{'clean':>8}{'AUROC':>8}{'by loss':>9}{'precision':>11}{'recall':>8}"


@dataclass(frozen=True)
class Losses:
    """Summed losses of n answers after their own questions, after `OTHERS` others (n, OTHERS), and after the question
    to which each slips when it is planted; their tokens."""

    name: str
    own: np.ndarray
    foreign: np.ndarray
    slipped: np.ndarray
    tokens: np.ndarray

    def matter(self, planted: np.ndarray) -> Matter:
        """What the check sees where the answers at `planted` have slipped."""
        own = self.own.copy()
        own[planted] = self.slipped[planted]
        rows = range(1, len(own) + 1)
        return matter_of(self.name, len(own), rows, own, self.foreign, self.tokens)


def measure(path: str, base: str, rows: int) -> Losses:
    """Ask the base about `rows` rows of a file, 0 for all of them."""
    yardstick = open_yardstick(base, "auto", 512)
    examples = read_examples(path).examples
    _, own, foreign, tokens = ask_base(sample(examples, rows or len(examples)), yardstick, OTHERS + 1, say_aside)
    if not len(own):
        sys.exit(f"{path}: too few rows with a question to exchange")
    return Losses(Path(path).stem, own, foreign[:, :OTHERS], foreign[:, OTHERS], tokens)


def auroc(scores: np.ndarray, planted: np.ndarray) -> float:
    """The probability that one of the planted scores lower than one of the others; ties count half."""
    low = np.zeros(len(scores), dtype=bool)
    low[planted] = True
    below, others = scores[low][:, None], scores[~low][None, :]
    return float((below < others).mean() + 0.5 * (below == others).mean())


def row_of(losses: Losses) -> str:
    """A line of the table."""
    n, draw = len(losses.own), np.random.default_rng(SEED)
    clean = len(losses.matter(np.empty(0, dtype=int)).misfits()) / n
    by_matter, by_loss, found, listed, there = [], [], 0, 0, 0
    for _ in range(DRAWS):
        planted = draw.choice(n, max(1, round(n * PLANTED)), replace=False)
        matter = losses.matter(planted)
        own = losses.own.copy()
        own[planted] = losses.slipped[planted]
        by_matter.append(auroc(matter.scores, planted))
        by_loss.append(auroc(-own / losses.tokens, planted))
        misfits = matter.misfits()
        found += len(set(misfits) & set(planted.tolist()))
        listed, there = listed + len(misfits), there + len(planted)
    return (
        f"{losses.name:22}{n:6}{losses.tokens.mean():8.0f}{clean:8.1%}{np.mean(by_matter):8.2f}{np.mean(by_loss):9.2f}"
        f"{found / listed if listed else float('nan'):11.0%}{found / there:8.0%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base_model", default="weights/smollm2-135m-instruct", help="default: %(default)s")
    parser.add_argument("--sets", nargs="+", default=SETS, metavar="FILE", help="default: the shipped ones")
    parser.add_argument("--rows", type=int, default=150, help="of each set, 0 for all (default: %(default)s)")
    options = parser.parse_args()
    print(HEAD)
    for path in options.sets:
        print(row_of(measure(path, options.base_model, options.rows)), flush=True)


if __name__ == "__main__":
    main()
