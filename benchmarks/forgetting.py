"""What a fine-tune gains and forgets, with each remedy by itself and with the defaults, over several seeds.

    python benchmarks/forgetting.py --seeds 3 --keep runs     the table of docs/benchmarks.md, on both sets
    python benchmarks/forgetting.py --sets alpacas --ways unprotected defaults
    python benchmarks/forgetting.py --num_epochs 0.2          a quick look

Each way is finetune.py with the options named below and no others. Each report is python -m alpaca.evaluation,
whole. A seed decides which rows are held out, their order, the draw of the general rows and the start of the adapter.

The rise is that of the loss of the base's own answers to general questions, per token: how far the adapter moved away
from what the base says where it was not asked to. The ratios compare each run with the unprotected one of its own seed.
With two seeds and more, the interval is Student's, of 95 %. Each run begins without answers of the base that another
one asked for, so that their time counts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from alpaca.paths import CACHE, cache_home  # noqa: E402

SETS = {"alpacas": "data/alpacas.jsonl", "insurance_zh": "data/insurance_zh.jsonl"}
PLAIN = "unprotected"
WAYS: dict[str, list[str]] = {
    PLAIN: ["--replay_ratio", "0"],
    "written rows": ["--replay_self", "false", "--replay_kl", "0"],
    "own answers": ["--replay_self", "true", "--replay_kl", "0"],
    "KL on written rows": ["--replay_self", "false"],
    "MLP only, r 26": ["--replay_ratio", "0", "--lora_target_modules", "gate_proj,up_proj,down_proj", "--lora_r", "26",
                       "--lora_alpha", "52"],
    "defaults": [],
}  # fmt: skip
STUDENT = (math.inf, 12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # of 95 %, by degrees of freedom
UNKNOWN = math.nan


def run(rows: str, way: Sequence[str], base: str, adapter: Path, more: Sequence[str]) -> dict[str, float]:
    """Fine-tune, report, and return the figures of both. What is in the folder `adapter` already is used."""
    with tempfile.TemporaryDirectory(prefix="cache-") as cache:
        fine_tune(rows, base, adapter, [*more, *way], cache=Path(cache))
    report = adapter / "report" / "report.json"
    if not report.is_file():
        _python("-m", "alpaca.evaluation", "--adapter", str(adapter), "--base_model", base, "--data_path", rows)
    read = (json.loads(path.read_text(encoding="utf-8")) for path in (report, adapter / "alpaca.json"))
    return figures(*read)


def fine_tune(rows: str, base: str, adapter: Path, more: Sequence[str], cache: Path | None = None) -> None:
    """Train eight rows a step, without a report; what is in the folder `adapter` already stays. `cache`: as `_python`
    takes it."""
    if not (adapter / "alpaca.json").is_file():
        command = ["finetune.py", "--base_model", base, "--data_path", rows, "--output_dir", str(adapter)]
        _python(*command, "--batch_size", "8", "--report_budget", "0", *more, cache=cache)


def _python(*command: str, cache: Path | None = None) -> None:
    """`cache`: an empty folder to take for the cache, apart from the kernels that were compiled already."""
    print(f"  {' '.join(command)}", file=sys.stderr, flush=True)
    own = {}
    if cache is not None:
        (cache_home() / "kernels").mkdir(parents=True, exist_ok=True)
        (cache / "kernels").symlink_to((cache_home() / "kernels").resolve())
        own = {CACHE: str(cache)}
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=sys.stderr, env={**os.environ, **own})


def figures(report: Mapping[str, Any], card: Mapping[str, Any]) -> dict[str, float]:
    """What counts of one run: losses per token, counts of probes and of answers that talk like the data, seconds and
    bytes of the training."""
    domain, general, own = report["domain"], report["general"], report["own_answers"]
    kinds, parts = report["probing"]["kinds"], report.get("gain") or {}
    return {
        "gain": domain["before"] - domain["after"],
        "of which manner": (parts.get("manner") or {}).get("value", UNKNOWN),
        "of which matter": (parts.get("matter") or {}).get("value", UNKNOWN),
        "rise": own["after"] - own["before"],
        "rise of the general loss": general["after"] - general["before"],
        "probes passed, base": sum(kind["before"] for kind in kinds),
        "probes passed": sum(kind["after"] for kind in kinds),
        "answers like the data, base": report["drift"]["before"],
        "answers like the data": report["drift"]["after"],
        "recommended scale": (report["sweep"] or {}).get("recommended") or UNKNOWN,
        "minutes of training": card["run"]["seconds"] / 60,
        "memory, GB": card["run"]["peak_memory"] / 1e9,
    }


def ratios(values: Mapping[str, float], plain: Mapping[str, float]) -> dict[str, float]:
    """A run beside the unprotected one of the same seed."""
    compared = {"rise": "rise", "gain": "gain", "matter": "of which matter", "time": "minutes of training"}
    return {f"{short}, of the {PLAIN}": values[name] / plain[name] for short, name in compared.items()}


def mean_and_interval(values: Sequence[float]) -> str:
    """`0.47`, or with several values `0.47 ± 0.05`; `–` where one is not known."""
    if any(math.isnan(value) for value in values):
        return "–"
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.3g}"
    factor = STUDENT[len(values) - 1] if len(values) <= len(STUDENT) else 1.96
    return f"{mean:.3g} ± {factor * statistics.stdev(values) / math.sqrt(len(values)):.2g}"


def show(name: str, found: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """The table of a set: a column for each way, with the figures of each of its seeds."""
    width = 2 + max(16, *map(len, found))
    print(f"\n{name:28}" + "".join(f"{way:>{width}}" for way in found))
    columns = {way: [dict(values) for values in runs] for way, runs in found.items()}
    if PLAIN in found:
        for way, runs in columns.items():
            for values, plain in zip(runs, found[PLAIN], strict=True):
                values |= ratios(values, plain) if way != PLAIN else {}
    for figure in max((runs[0] for runs in columns.values()), key=len):
        cells = (mean_and_interval([values.get(figure, UNKNOWN) for values in runs]) for runs in columns.values())
        print(f"{figure:28}" + "".join(f"{cell:>{width}}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base_model", default="weights/smollm2-135m-instruct", help="default: %(default)s")
    parser.add_argument("--sets", nargs="+", default=list(SETS), metavar="SET", help=f"{', '.join(SETS)}, or files")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="42, 43, … (default: %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where adapters and reports stay")
    parser.add_argument("--num_epochs", type=float, default=3.0, help="of each fine-tune (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="forgetting-") as temporary:
        folder = (options.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.sets:
            found: dict[str, list[dict[str, float]]] = {}
            for way in options.ways:
                for seed in range(42, 42 + options.seeds):
                    adapter = folder / "-".join([Path(name).stem, *way.replace(",", "").split(), str(seed)])
                    more = ["--seed", str(seed), "--num_epochs", f"{options.num_epochs:g}"]
                    result = run(SETS.get(name, name), WAYS[way], options.base_model, adapter, more)
                    found.setdefault(way, []).append(result)
            show(name, found)


if __name__ == "__main__":
    main()
