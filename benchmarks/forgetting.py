"""What a fine-tune gains and forgets, without replay and with it, on the default base and the shipped sets.

    python benchmarks/forgetting.py                      both sets, six fine-tunes: an hour on two cores
    python benchmarks/forgetting.py --sets alpacas       one of them
    python benchmarks/forgetting.py --keep runs          keep the adapters and their reports in runs/
    python benchmarks/forgetting.py --num_epochs 0.2     a quick look

Each fine-tune is finetune.py as it comes, apart from the replay: none, the default (a tenth of general rows), or the
same with answers of the base itself. Each report is python -m alpaca.evaluation, whole.

The rise is that of the loss of the base's own answers to general questions: how far the adapter moved away from what
the base says where it was not asked to.
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
RUNS = {
    "without replay": ["--replay_ratio", "0"],
    "defaults": [],
    "own answers": ["--replay_self", "true"],
}


def run(name: str, kind: str, base: str, folder: Path, epochs: float) -> dict[str, Any]:
    """Fine-tune, report, and return the report's figures. What is in `folder` already is used."""
    adapter = folder / f"{name}-{kind.replace(' ', '-')}"
    if not (adapter / "alpaca.json").is_file():
        command = ["finetune.py", "--base_model", base, "--data_path", SETS[name], "--output_dir", str(adapter),
                   "--batch_size", "8", "--num_epochs", str(epochs), "--report_budget", "0", *RUNS[kind]]  # fmt: skip
        _python(*command)
    if not (adapter / "report" / "report.json").is_file():
        _python("-m", "alpaca.evaluation", "--adapter", str(adapter), "--base_model", base)
    found: dict[str, Any] = json.loads((adapter / "report" / "report.json").read_text(encoding="utf-8"))
    return found


def _python(*command: str) -> None:
    print(f"  {' '.join(command)}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=sys.stderr)


def figures(report: dict[str, Any]) -> dict[str, float]:
    """What counts of one report: losses per token, and counts of probes and of answers that talk like the data."""
    domain, general, own = report["domain"], report["general"], report["own_answers"]
    kinds = report["probing"]["kinds"]
    return {
        "domain loss, base": domain["before"],
        "domain loss": domain["after"],
        "gain": domain["before"] - domain["after"],
        "general loss, base": general["before"],
        "general loss": general["after"],
        "loss of the base's own answers, base": own["before"],
        "loss of the base's own answers": own["after"],
        "rise": own["after"] - own["before"],
        "probes passed, base": sum(kind["before"] for kind in kinds),
        "probes passed": sum(kind["after"] for kind in kinds),
        "of which identity": sum(kind["after"] for kind in kinds if kind["kind"] == "identity"),
        "answers like the data, base": report["drift"]["before"],
        "answers like the data": report["drift"]["after"],
        "recommended scale": (report["sweep"] or {}).get("recommended") or float("nan"),
    }


def show(name: str, found: dict[str, dict[str, float]]) -> None:
    print(f"\n{name:38}" + "".join(f"{run:>18}" for run in found))
    for figure in next(iter(found.values())):
        print(f"{figure:38}" + "".join(f"{values[figure]:18.4g}" for values in found.values()))
    plain = found.get("without replay")
    for run, values in found.items():
        if plain is not None and run != "without replay":
            print(
                f"{run}: {values['rise'] / plain['rise']:.2f} of the rise, {values['gain'] / plain['gain']:.2f} of the "
                f"gain, probes {values['probes passed'] / values['probes passed, base']:.2f} of the base's"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base_model", default="weights/smollm2-135m-instruct", help="default: %(default)s")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where adapters and reports stay")
    parser.add_argument("--num_epochs", type=float, default=3.0, help="of each fine-tune (default: %(default)s)")
    options = parser.parse_args()
    base, epochs = options.base_model, options.num_epochs
    with tempfile.TemporaryDirectory(prefix="forgetting-") as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.sets:
            show(name, {kind: figures(run(name, kind, base, folder.resolve(), epochs)) for kind in options.runs})


if __name__ == "__main__":
    main()
