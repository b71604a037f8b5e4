"""What a base loses when the engine holds it in 8 or 4 bits: loss of rows, and probes that it passes.

    python benchmarks/quantization.py                         the default base
    python benchmarks/quantization.py --adapter lora-alpaca   the same with an adapter merged into it first

A base that was converted from a 4-bit file loses nothing where the groups of 4 bits are those of the file. Merging an
adapter moves its weights off that grid.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from alpaca.adapter.folder import load_adapter, verify_files  # noqa: E402
from alpaca.base.find import resolve_base  # noqa: E402
from alpaca.base.load import load_model, load_tokenizer  # noqa: E402
from alpaca.data.reader import read_examples  # noqa: E402
from alpaca.evaluation.probes import passes, read_probes  # noqa: E402
from alpaca.prompts.encode import accepted, encode_examples  # noqa: E402
from alpaca.prompts.find import load_template  # noqa: E402
from alpaca.serving.inputs import request_from_inputs  # noqa: E402
from alpaca.serving.loading import LoadedBase, open_engine  # noqa: E402
from alpaca.serving.quantized import QUANTIZED  # noqa: E402
from alpaca.serving.together import answers  # noqa: E402

PRECISIONS = ("bf16", "int8", "int4", "nf4")
DATA = ROOT / "data"


def rounded(model: Any, bits: str) -> Any:
    """The model with the weights of its layers as the engine's products see them."""
    import torch
    from torch import nn

    for name, linear in model.named_modules():
        if type(linear) is nn.Linear and name != "lm_head":
            eye = torch.eye(linear.in_features, dtype=torch.bfloat16)
            linear.weight.data = QUANTIZED[bits](linear.weight.data).product(eye).t().contiguous()
    return model


def loss(model: Any, rows: list[Any]) -> float:
    """Mean loss of the rows' answers, per token."""
    import torch

    total, count = 0.0, 0
    with torch.inference_mode():
        for row in rows:
            logits = model(input_ids=torch.tensor([row.input_ids])).logits[0].float()
            for start, end in row.trained:
                wanted = torch.tensor(row.input_ids[start:end])
                total += torch.nn.functional.cross_entropy(logits[start - 1 : end - 1], wanted, reduction="sum").item()
                count += end - start
    return total / count


def passed(base: LoadedBase, tokens: int) -> tuple[int, int]:
    """Probes that the greedy answers of the engine pass, and how many there are."""
    engine = open_engine(base, say=lambda line: None)
    probes = read_probes(DATA / "probes.jsonl")
    requests = [
        request_from_inputs(prompt=f"{p.instruction}\n{p.input}".strip(), temperature=0.0, max_tokens=tokens)
        for p in probes
    ]
    found = sum(passes(p, a.text) for p, a in zip(probes, answers(engine, requests), strict=True))
    engine.close()
    return found, len(probes)


def merged(base: Path, adapter: Path, folder: Path) -> Path:
    """The base with an adapter in it, in bf16."""
    model: Any = load_adapter(load_model(base, "fp32"), verify_files(adapter, base))
    model.merge_and_unload().bfloat16().save_pretrained(folder)
    load_tokenizer(base).save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base_model", help="default: $BASE_MODEL, else the only base in weights/")
    parser.add_argument("--adapter", type=Path, help="merged into the base before it is quantised")
    parser.add_argument("--tokens", type=int, default=48, help="of an answer to a probe (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=100, help="of each set (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        base = resolve_base(options.base_model, ROOT / "weights")
        if options.adapter:
            base = merged(base, options.adapter, Path(temporary))
        tokenizer = load_tokenizer(base)
        template = load_template("chat", tokenizer)
        sets = {}
        for name in ("general", "alpacas"):
            examples = accepted(template, read_examples(str(DATA / f"{name}.jsonl")).examples)[: options.rows]
            sets[name] = encode_examples(tokenizer, template, examples, cutoff_len=512).examples
        print(f"{'':6} {'general loss':>12} {'rise':>7} {'alpacas loss':>12} {'rise':>7} {'probes':>8}")
        first: dict[str, float] = {}
        for precision in PRECISIONS:
            bits = precision if precision in QUANTIZED else None
            model = load_model(base, "bf16" if bits else precision)
            losses = {name: loss(rounded(model, bits) if bits else model, rows) for name, rows in sets.items()}
            first = first or losses
            held = LoadedBase(base, load_model(base, "bf16" if bits else precision), tokenizer, bits)
            well, of = passed(held, options.tokens)
            cells = " ".join(f"{losses[name]:12.4f} {losses[name] - first[name]:+7.4f}" for name in sets)
            print(f"{precision:6} {cells} {well:4}/{of}", flush=True)


if __name__ == "__main__":
    main()
