"""Every way out for adapters, each asked in its own tool, and how far the answers agree.

    make test-export                                                        llama.cpp and vLLM, once
    python benchmarks/exports.py --adapters lora-alpaca lora-insurance      the table in docs/export.md
    python benchmarks/exports.py --adapters lora-alpaca --ways merged meta  some of them

Each row is one check of one export, as `python -m alpaca.export` made it and noted it in proof.json. A form whose tool
is not here is asked in transformers alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from alpaca.export import judges  # noqa: E402

WAYS = {
    "merged": ["merged"],
    "gguf F32": ["gguf", "--outtype", "F32"],
    "gguf BF16": ["gguf", "--outtype", "BF16"],
    "gguf Q8_0": ["gguf", "--outtype", "Q8_0"],
    "gguf Q4_0": ["gguf", "--outtype", "Q4_0"],
    "gguf-lora": ["gguf-lora"],
    "meta": ["meta"],
    "vllm": ["vllm"],
}
"""The table's names → the words of the command. After `meta` goes the base alone, whose tensors must come back."""
TOGETHER = ("gguf-lora", "vllm")  # that take all adapters
HEAD = (
    "export",
    "asked in",
    "equal tokens",
    "near ties",
    "log-probabilities, mean, most",
    "loss here, there",
    "answers",
)


def main() -> None:
    options = arguments()
    print(" ".join(["versions:", *versions()]))
    print(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="exports-") as place:
        for way in options.ways:
            given = [options.adapters] if WAYS[way][0] in TOGETHER else [[name] for name in options.adapters[:1]]
            for number, adapters in enumerate(given):
                show(way, export(WAYS[way], adapters, options.base_model, Path(place) / f"{way}-{number}"))
        if "meta" in options.ways:
            folder = Path(place) / "meta-base"
            export(WAYS["meta"], [], options.base_model, folder)
            print(f"\nmeta, the base alone: {came_back(folder, options.base_model)}")


def arguments() -> argparse.Namespace:
    out = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    out.add_argument("--base_model", default="weights/smollm2-135m-instruct")
    out.add_argument(
        "--adapters", nargs="+", required=True, help="the first for every form, all for gguf-lora and vllm"
    )
    out.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    return out.parse_args()


def versions() -> list[str]:
    """Of the tools that are asked, each where it is installed."""
    ours = [f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "gguf")]
    llamacpp, vllm = judges.llamacpp_python(), judges.vllm_command()
    theirs = [("xllamacpp", llamacpp), ("vllm", vllm and str(Path(vllm).with_name("python")))]
    return ours + [f"{name} {_version_in(python, name)}" for name, python in theirs if python]


def _version_in(python: str, package: str) -> str:
    asked = [python, "-c", f"from importlib.metadata import version; print(version({package!r}))"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def export(words: list[str], adapters: list[str], base: str, folder: Path) -> list[dict[str, Any]]:
    """Run the command; what proof.json says of each model."""
    command = [sys.executable, "-m", "alpaca.export", *words, "--base_model", base, "--output_dir", str(folder)]
    started = time.monotonic()
    subprocess.run([*command, *(["--adapter", *adapters] if adapters else [])], cwd=ROOT, check=True, stdout=sys.stderr)
    print(f"{folder.name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    models: list[dict[str, Any]] = json.loads((folder / "proof.json").read_text(encoding="utf-8"))["models"]
    return models


def show(way: str, models: list[dict[str, Any]]) -> None:
    """One row for each check of each model."""
    for model in models:
        for found in model["checks"]:
            losses = (found["loss_here"], found["loss_there"])
            cells = (
                f"{way}, {model['name']}",
                found["tool"].partition(" on ")[0],
                f"{found['equal']} of {found['compared']}",
                str(found["ties"]),
                f"{found['logprob_mean']:.5f}, {found['logprob_largest']:.4f}",
                "–" if None in losses else "{:.4f}, {:.4f}".format(*losses),
                "as here" if found["good"] else "NOT as here",
            )
            print(f"| {' | '.join(cells)} |", flush=True)


def came_back(folder: Path, base: str) -> str:
    """How many tensors of the base have the same bytes in Meta's file, its order of rotary rows undone."""
    import torch

    from alpaca.base.find import resolve_base
    from alpaca.convert.layout import mappings
    from alpaca.convert.params import read_params
    from alpaca.convert.rotary import interleaved_to_halves
    from alpaca.export.weights import MergedWeights

    weights = MergedWeights(resolve_base(base))
    params = read_params(folder / "params.json")
    stored = torch.load(folder / "consolidated.00.pth", mmap=True)
    table = mappings(params, params.vocab_size, tied="lm_head.weight" not in weights.entries, embedding_cut=1)
    equal = 0
    for mapping in table:
        theirs = stored[mapping.source]
        theirs = interleaved_to_halves(theirs, mapping.rotary_heads) if mapping.rotary_heads else theirs
        entry = weights.entries[mapping.target]
        with entry.file.open("rb") as file:
            file.seek(entry.start)
            equal += file.read(entry.end - entry.start) == theirs.contiguous().view(torch.uint8).numpy().tobytes()
    return f"{equal} of {len(weights.entries)} tensors have the base's bytes"


if __name__ == "__main__":
    main()
