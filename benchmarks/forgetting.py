"""What a fine-tune gains and forgets, without replay and with it, on the default base and the shipped sets.

    python benchmarks/forgetting.py                      both sets: four fine-tunes, about half an hour on two cores
    python benchmarks/forgetting.py --sets alpacas       one of them
    python benchmarks/forgetting.py --keep runs          keep the adapters and their reports in runs/

Each fine-tune is finetune.py as it comes, apart from --replay_ratio; each report is python -m alpaca.evaluation, whole.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SETS = {"alpacas": "data/alpacas.jsonl", "insurance_zh": "data/insurance_zh.jsonl"}
RATIOS = {"without replay": ["--replay_ratio", "0"], "defaults": []}


def run(name: str, ratio: str, base: str, folder: Path) -> dict[str, Any]:
    """Fine-tune, report, and return the report's figures. What is in `folder` already is used."""
    adapter = folder / f"{name}-{'plain' if RATIOS[ratio] else 'replay'}"
    if not (adapter / "alpaca.json").is_file():
        command = ["finetune.py", "--base_model", base, "--data_path", SETS[name], "--output_dir", str(adapter),
                   "--batch_size", "8", "--report_budget", "0", *RATIOS[ratio]]  # fmt: skip
        _python(*command)
    if not (adapter / "report" / "report.json").is_file():
        _python("-m", "alpaca.evaluation", "--adapter", str(adapter), "--base_model", base)
    found: dict[str, Any] = json.loads((adapter / "report" / "report.json").read_text(encoding="utf-8"))
    return found


def _python(*command: str) -> None:
    print(f"  {' '.join(command)}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=sys.stderr)


def figures(report: dict[str, Any]) -> dict[str, float]:
    """Domain gain, general rise and probes of one report."""
    measured = report["measured"]
    domain, general = measured["domain"], measured["general"]
    kinds = measured["probing"]["kinds"]
    return {
        "domain before": domain["before"],
        "domain after": domain["after"],
        "gain": domain["before"] - domain["after"],
        "general before": general["before"],
        "general after": general["after"],
        "rise": general["after"] - general["before"],
        "probes before": sum(kind["before"] for kind in kinds),
        "probes after": sum(kind["after"] for kind in kinds),
    }


def show(name: str, found: dict[str, dict[str, float]]) -> None:
    print(f"\n{name}\n{'':16}" + "".join(f"{ratio:>18}" for ratio in found))
    for figure in next(iter(found.values())):
        print(f"{figure:16}" + "".join(f"{values[figure]:18.4f}" for values in found.values()))
    plain, replay = found["without replay"], found["defaults"]
    if plain["rise"] > 0:
        print(f"general loss rises by {replay['rise'] / plain['rise']:.2f} of what it rises without replay")
    print(f"the domain keeps {replay['gain'] / plain['gain']:.2f} of its gain")
    print(f"the probes keep {replay['probes after'] / replay['probes before']:.2f} of the base's score")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base_model", default="weights/smollm2-135m-instruct", help="default: %(default)s")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where adapters and reports stay")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="forgetting-") as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.sets:
            show(name, {ratio: figures(run(name, ratio, options.base_model, folder.resolve())) for ratio in RATIOS})


if __name__ == "__main__":
    main()
