"""Memory by model, as the project's own code reckons it: the table of docs/operations.md.

    python benchmarks/sizes.py
    python benchmarks/sizes.py Qwen3-8B Llama-3.1-8B     these only

Nothing is measured and no weights are needed. Each model is built from its published numbers on torch's meta device,
and its headers are written to a file without contents, so that what plans a real run can be asked.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from alpaca.adapter.lora_config import LoraSpec  # noqa: E402
from alpaca.base.headers import count_weights  # noqa: E402
from alpaca.base.precision import weight_bytes  # noqa: E402
from alpaca.serving.cache import plan_cache  # noqa: E402
from alpaca.serving.decoder import longest_context  # noqa: E402
from alpaca.serving.limits import COLUMNS, bytes_per_column  # noqa: E402
from alpaca.training.preflight import GPU_BUDGET, estimate, lora_cost, resolve_targets  # noqa: E402

GPU = torch.device("cuda")  # named only: what is asked about it computes sizes
ELSEWHERE = torch.device("meta")  # no CPU either, and products on it cost nothing: estimate() measures their speed
CONTEXT = 8192
CONTEXTS = 8  # in full, of keys and values: over sixty answers of a thousand tokens
PLENTY = 1 << 50


@dataclass(frozen=True)
class Published:
    """A model's configuration as its makers published it; parameters in billions, as a check."""

    name: str
    kind: str
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int
    billions: float
    tied: bool = False
    head_dim: int | None = None

    def config(self) -> Any:
        """The same as a transformers configuration."""
        return AutoConfig.for_model(
            self.kind, hidden_size=self.width, intermediate_size=self.inner, num_hidden_layers=self.layers,
            num_attention_heads=self.heads, num_key_value_heads=self.kv_heads, vocab_size=self.vocabulary,
            max_position_embeddings=self.context, tie_word_embeddings=self.tied, sliding_window=None,
            head_dim=self.head_dim or self.width // self.heads,
        )  # fmt: skip


MODELS = [
    Published("SmolLM2-135M", "llama", 576, 1536, 30, 9, 3, 49152, 8192, 0.135, tied=True),
    Published("Llama-3.2-1B", "llama", 2048, 8192, 16, 32, 8, 128256, 131072, 1.236, tied=True),
    Published("Llama-3.2-3B", "llama", 3072, 8192, 28, 24, 8, 128256, 131072, 3.213, tied=True),
    Published("Qwen3-4B", "qwen3", 2560, 9728, 36, 32, 8, 151936, 40960, 4.022, tied=True, head_dim=128),
    Published("Llama-2-7B", "llama", 4096, 11008, 32, 32, 32, 32000, 4096, 6.738),
    Published("Mistral-7B-v0.3", "mistral", 4096, 14336, 32, 32, 8, 32768, 32768, 7.248),
    Published("Llama-3.1-8B", "llama", 4096, 14336, 32, 32, 8, 128256, 131072, 8.030),
    Published("Qwen3-8B", "qwen3", 4096, 12288, 36, 32, 8, 151936, 40960, 8.191, head_dim=128),
    Published("Llama-2-13B", "llama", 5120, 13824, 40, 40, 40, 32000, 4096, 13.016),
    Published("Llama-3.1-70B", "llama", 8192, 28672, 80, 64, 8, 128256, 131072, 70.554),
]


def write_headers(model: Published, folder: Path) -> None:
    """A base's folder whose one safetensors file has its tensors' names and shapes, and a hole for their contents."""
    config = model.config()
    with torch.device("meta"):
        tensors = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).state_dict()
    if model.tied:
        del tensors["lm_head.weight"]
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    (folder / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


@dataclass(frozen=True)
class Sizes:
    """Bytes that one model takes."""

    name: str
    weights: dict[str, float]
    context: float
    """Keys and values of the longest answer."""
    context_tokens: int
    adapters: float
    training: dict[tuple[str, bool], float]
    """By precision, and whether activations are computed again."""

    def serving(self, precision: str) -> float:
        """Weights, room for adapters, and keys and values of eight contexts in full."""
        return self.weights[precision] + self.adapters + CONTEXTS * self.context


def sizes(model: Published) -> Sizes:
    """Ask the project's code. Raises SystemExit where the model built isn't the one published."""
    config = model.config()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_headers(model, folder)
        count = count_weights(folder)
        if abs(count / 1e9 - model.billions) > 0.001:
            raise SystemExit(f"{model.name}: {count:,} weights, published are {model.billions} billion")
        weights = {precision: weight_bytes(folder, precision) for precision in ("bf16", "int8", "nf4")}
        tokens = min(CONTEXT, longest_context(config))
        plan = plan_cache(config, torch.bfloat16, places=1, context=tokens, free=PLENTY, device=GPU)
        spec = LoraSpec(r=16, lora_alpha=32, target_modules=resolve_targets(folder, ["all-linear"]))
        training = {
            (precision, again): estimate(
                folder,
                lora_cost(folder, spec, precision, again),
                [],
                largest=GPU_BUDGET,
                precision=precision,
                device=ELSEWHERE,
            ).memory
            for precision, again in (("bf16", False), ("bf16", True), ("nf4", True))
        }
    return Sizes(
        model.name,
        weights,
        plan.bytes_per_token * plan.context,
        plan.context,
        COLUMNS * bytes_per_column(config, torch.bfloat16, GPU),
        training,
    )


def tables(rows: list[Sizes]) -> str:
    """Two tables in Markdown, in GB."""
    lines = [
        "| GB, on a GPU | weights bf16 | int8 | nf4 | a context | 256 ranks | serving bf16 | int8 | nf4 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = [*row.weights.values(), row.context, row.adapters, *(row.serving(name) for name in row.weights)]
        mark = "" if row.context_tokens == CONTEXT else f" ({row.context_tokens:,} tokens)"
        lines.append(f"| {row.name}{mark} | {' | '.join(f'{cell / 1e9:.1f}' for cell in cells)} |")
    lines += [
        "",
        "| GB, on a GPU | fine-tuning bf16 | with checkpointing | nf4 with checkpointing |",
        "| --- " * 4 + "|",
    ]
    for row in rows:
        lines.append(f"| {row.name} | {' | '.join(f'{cell / 1e9:.1f}' for cell in row.training.values())} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    published = {model.name: model for model in MODELS}
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(published)}; none: all of them")
    names = parser.parse_args().models or list(published)
    if unknown := [name for name in names if name not in published]:
        parser.error(f"there is no {', '.join(unknown)} in the table: {', '.join(published)}")
    print("Computed from published numbers by the code that plans a run; not measured.\n")
    print(tables([sizes(published[name]) for name in names]))


if __name__ == "__main__":
    main()
