"""How well `python -m alpaca.data FILE --base_model BASE` finds answers that slipped to another row.

    python benchmarks/misfits.py                                            the shipped sets: some minutes on two cores
    python benchmarks/misfits.py --sets data/alpacas.jsonl --rows 0         all rows of one of them
    python benchmarks/misfits.py --sets alpaca_en_700.json --rows 120       another file, 120 rows of it

A tenth of the answers of a set stand with another row's question, drawn anew a hundred times. `clean` is the share of
rows that are listed where nothing was planted. AUROC is the probability that a planted row scores lower than another
one of its language, by the matter of rows and by the answer's loss alone. Only languages with enough rows take part.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from alpaca.data.misfits import OTHERS, Losses, ask_base, sample  # noqa: E402
from alpaca.data.reader import read_examples  # noqa: E402
from alpaca.data.yardstick import open_yardstick  # noqa: E402
from alpaca.progress import say_aside  # noqa: E402

SETS = ["data/alpacas.jsonl", "data/insurance_zh.jsonl", "data/general.jsonl"]
PLANTED, DRAWS, SEED = 0.1, 100, 0
HEAD = f"{'':34}{'rows':>6}{'tokens':>8}{'clean':>8}{'AUROC':>8}{'by loss':>9}{'precision':>11}{'recall':>8}"


def measure(path: str, base: str, rows: int) -> list[Losses]:
    """Ask the base about `rows` rows of a file, 0 for all. A planted answer slips to its last other question."""
    yardstick = open_yardstick(base, "auto", 512)
    examples = read_examples(path).examples
    losses = ask_base(sample(examples, rows or len(examples)), yardstick, OTHERS + 1, say_aside)
    if not losses:
        sys.exit(f"{path}: too few rows of one language with a question to exchange")
    return losses


def planted(losses: Losses, places: np.ndarray) -> Losses:
    """The same where the answers at `places` have slipped to another row."""
    own = losses.own.copy()
    own[places] = losses.foreign[places, OTHERS]
    return replace(losses, own=own)


def auroc(scores: np.ndarray, planted: np.ndarray) -> float:
    """The probability that one of the planted scores lower than one of the others; ties count half."""
    low = np.zeros(len(scores), dtype=bool)
    low[planted] = True
    return share_above(scores[~low], scores[low])


def share_above(some: np.ndarray, others: np.ndarray) -> float:
    """The probability that one of `some` is above one of `others`; ties count half."""
    above, same = some[:, None] > others[None, :], some[:, None] == others[None, :]
    return float(above.mean() + 0.5 * same.mean())


def row_of(name: str, losses: Losses) -> str:
    """A line of the table: one language of a set."""
    n, draw = len(losses.own), np.random.default_rng(SEED)
    clean = losses.matter()
    by_matter, by_loss, found, listed, there = [], [], 0, 0, 0
    for _ in range(DRAWS):
        places = draw.choice(n, max(1, round(n * PLANTED)), replace=False)
        slipped = planted(losses, places)
        matter = slipped.matter()
        by_matter.append(auroc(matter.scores, places))
        by_loss.append(auroc(-slipped.own / losses.tokens, places))
        misfits = matter.misfits()
        found += len(set(misfits) & set(places.tolist()))
        listed, there = listed + len(misfits), there + len(places)
    right = f"{found / listed:.0%}" if listed else "-"
    return (
        f"{name:34}{n:6}{losses.tokens.mean():8.0f}{len(clean.misfits()) / n:8.1%}{np.mean(by_matter):8.2f}"
        f"{np.mean(by_loss):9.2f}{right:>11}{found / there:8.0%}{'  can not judge' if clean.blind else ''}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base_model", default="weights/smollm2-135m-instruct", help="default: %(default)s")
    parser.add_argument("--sets", nargs="+", default=SETS, metavar="FILE", help="default: the shipped ones")
    parser.add_argument("--rows", type=int, default=150, help="of each set, 0 for all (default: %(default)s)")
    options = parser.parse_args()
    print(HEAD)
    for path in options.sets:
        for losses in measure(path, options.base_model, options.rows):
            print(row_of(f"{Path(path).stem}, {losses.language}", losses), flush=True)


if __name__ == "__main__":
    main()
