"""What the default learning rate is worth: the loss of held-out rows after fine-tunes at fractions and multiples of it.

    python benchmarks/learning_rates.py --seeds 2 --sets data/alpacas.jsonl alpaca_en_700.json

Each run is finetune.py with its defaults and eight rows in a step, without a report. A seed decides which rows are held
out, their order and the start of the adapter; all rates of a seed share them. So each rate is compared with the default
one of its own seed. With two seeds and more the interval is Student's, of 95 %.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from alpaca.base.headers import read_config  # noqa: E402
from alpaca.training.preflight import default_learning_rate  # noqa: E402
from benchmarks.forgetting import SETS, fine_tune, mean_and_interval  # noqa: E402

FACTORS = (0.7, 1.0, 1.5)


def first_rows(source: Path, count: int, folder: Path) -> Path:
    """A file of the first `count` rows of a .jsonl or .json file."""
    text = source.read_text(encoding="utf-8")
    rows = json.loads(text) if source.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    path = folder / f"{source.stem}.json"
    path.write_text(json.dumps(rows[:count], ensure_ascii=False), encoding="utf-8")
    return path


def held_out(rows: Path, rate: float, seed: int, options: argparse.Namespace, adapter: Path) -> tuple[float, float]:
    """The loss of the held-out rows before and after a fine-tune. What is in the folder `adapter` already is used."""
    more = ["--seed", str(seed), "--num_epochs", f"{options.num_epochs:g}", "--learning_rate", f"{rate:.3g}"]
    fine_tune(str(rows), options.base_model, adapter, more)
    losses = json.loads((adapter / "alpaca.json").read_text(encoding="utf-8"))["losses"]
    return losses["validation_before"], losses["validation_after"]


def show(name: str, rate: float, losses: Mapping[float, Sequence[tuple[float, float]]]) -> None:
    """A line for each factor: the loss after, and the gain as a share of the one at the default rate."""
    plain = [before - after for before, after in losses[1.0]]
    print(f"\n{name:24}{'rate':>10}{'loss after':>18}{'gain, of the default':>24}")
    for factor, found in losses.items():
        shares = [(before - after) / gain for (before, after), gain in zip(found, plain, strict=True)]
        cells = mean_and_interval([after for _, after in found]), mean_and_interval(shares)
        print(f"{f'{factor:g} x':24}{factor * rate:10.2g}{cells[0]:>18}{cells[1]:>24}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base_model", default="weights/smollm2-135m-instruct", help="default: %(default)s")
    parser.add_argument("--sets", type=Path, nargs="+", default=[Path(path) for path in SETS.values()], metavar="FILE")
    parser.add_argument("--rows", type=int, default=240, metavar="N", help="the first N of each set (default: 240)")
    parser.add_argument("--factors", type=float, nargs="+", default=FACTORS, help="of the default rate")
    parser.add_argument("--seeds", type=int, default=2, metavar="N", help="42, 43, … (default: %(default)s)")
    parser.add_argument("--num_epochs", type=float, default=1.0, help="of each fine-tune (default: %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the adapters stay")
    options = parser.parse_args()
    rate = default_learning_rate(read_config(Path(options.base_model))["hidden_size"])
    factors, seeds = sorted({*options.factors, 1.0}), range(42, 42 + options.seeds)
    with tempfile.TemporaryDirectory(prefix="rates-") as temporary:
        folder = (options.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for source in options.sets:
            rows = first_rows(source, options.rows, folder)
            found: dict[float, list[tuple[float, float]]] = {factor: [] for factor in factors}
            for seed, factor in itertools.product(seeds, factors):
                adapter = folder / f"{source.stem}-{factor:g}-{seed}"
                found[factor].append(held_out(rows, factor * rate, seed, options, adapter))
            show(source.stem, rate, found)


if __name__ == "__main__":
    main()
