"""Before anything is loaded: what will be trained, in how many steps, with what memory and in what time."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alpaca.adapter.folder import BaseShape
from alpaca.adapter.lora_config import LoraSpec
from alpaca.base.headers import count_layer_weights, tensor_entries
from alpaca.base.precision import weight_bytes
from alpaca.base.skeleton import model_config
from alpaca.errors import BadBase, BadSetting
from alpaca.packed.loss import CHUNK_LOGITS
from alpaca.packed.packing import Pack, Step
from alpaca.prompts.encode import Encoded
from alpaca.training.teaching import NOTHING_TAUGHT, Teaching

# Micro-batch tokens: on a CPU the matrix products are at full speed from about 500 tokens on and more only costs
# memory (benchmarks/train.py --budgets); a GPU needs thousands to be busy.
CPU_BUDGET, GPU_BUDGET = 1024, 8192
FIXED_BYTES = 0.75e9  # on a CPU: Python, torch, transformers, and what matrix products keep beside their results
GPU_SPREAD = 1.4  # what passes through memory beside the activations that are kept, as a factor on these
# On a CPU the C library's heap wears: micro-batches differ in size, and the holes that one leaves do not fit the next.
# So the factor grows with the logarithm of their number, measured up to 200 of them.
CPU_SPREAD, CPU_WEAR, WORN_AFTER = 0.9, 0.36, 200
TRAINED_BYTES = 16  # of a trained parameter: weight, gradient and AdamW's two moments in fp32
BUSY = 0.4  # share of a plain matrix product's rate that a training step reaches, as measured on a CPU


def token_budget(asked: int | None, cutoff_len: int, device: torch.device) -> tuple[int, str]:
    """Tokens in a micro-batch, and why."""
    if asked is not None:
        if asked < cutoff_len:
            return cutoff_len, f"micro_batch_tokens {asked} would not hold an example of cutoff_len {cutoff_len}"
        return asked, "as asked"
    budget, where = (GPU_BUDGET, "a GPU") if device.type == "cuda" else (CPU_BUDGET, "a CPU")
    if cutoff_len > budget:
        return cutoff_len, "one example of cutoff_len must fit"
    return budget, f"the default for {where}"


def default_learning_rate(hidden_size: int) -> float:
    """4.9e-4 · (2000 / width)^0.781: what LoRA wants on Llama models of every width, from the sweep in Schulman et
    al., "LoRA Without Regret" (2025). 2.8e-4 for a 7B; 1.3e-3 for SmolLM2-135M. Never above 2e-3, where the sweep ends.
    """
    return min(2e-3, float(f"{4.9e-4 * (2000 / hidden_size) ** 0.781:.2g}"))


def resolve_targets(base: Path, wanted: Sequence[str]) -> tuple[str, ...]:
    """The module names that LoRA adapts, as short as they can be (q_proj rather than its path in every layer).

    `all-linear` is every linear layer but the head. Raises BadSetting for a name the base does not have,
    BadBase for a base without such layers.
    """
    linear = [
        entry.name.removesuffix(".weight")
        for entry in tensor_entries(base)
        if entry.is_layer_matrix and entry.name.endswith(".weight")
    ]
    there = sorted({name.rsplit(".", 1)[-1] for name in linear})
    if not there:
        first = min((entry.name for entry in tensor_entries(base)), default="nothing")
        raise BadBase(
            f"{base} has no layers that can be adapted: its weights have other names ({first} for one) than those "
            "of a causal language model of LLaMA's kind (model.layers.0…)"
        )
    if list(wanted) == ["all-linear"]:
        return tuple(there)
    for name in wanted:
        if not any(module == name or module.endswith("." + name) for module in linear):
            raise BadSetting(f"lora_target_modules: {base.name} has no layer '{name}'. It has {', '.join(there)}")
    return tuple(sorted(set(wanted)))


def trainable_parameters(base: Path, spec: LoraSpec) -> int:
    """How many numbers a run trains."""
    return spec.count_weights(BaseShape(base).linears)


def largest_pack(steps: Sequence[Step], examples: Sequence[Encoded], process: int = 0) -> Pack:
    """The pack with the most tokens among those of a process; of equal ones, that with the longest example."""
    packs = {pack for step in steps for pack in step.packs[process]}
    lengths = {pack: [len(examples[index]) for index in pack] for pack in packs}
    return max(packs, key=lambda pack: (sum(lengths[pack]), max(lengths[pack], default=0), pack))


@dataclass(frozen=True)
class Cost:
    """What it takes to train something, whatever the rows are.

    `held`: bytes of weights, gradients and the optimizer's moments. `flop`: of one matrix weight and token, forward and
    backward; `head_flop`: the same of the head and a labelled token. `activations`: bytes kept per token.
    """

    held: float
    flop: int
    head_flop: int
    activations: float


def lora_cost(base: Path, spec: LoraSpec, precision: str, checkpointing: bool) -> Cost:
    """Of an adapter: 4 FLOP, forward and backward through a frozen base, 6 with activations computed again."""
    held = weight_bytes(base, precision) + trainable_parameters(base, spec) * TRAINED_BYTES
    activations = activation_bytes(model_config(base).to_dict(), precision, checkpointing)
    return Cost(held, 6 if checkpointing else 4, 4, activations)


@dataclass(frozen=True)
class Estimate:
    """Peak memory in bytes of a run, seconds that its steps are expected to take, and their arithmetic in words."""

    memory: float
    seconds: float
    note: str

    def line(self) -> str:
        return f"about {self.memory / 1e9:.1f} GB at the peak; the steps are {self.note}"


def estimate(
    base: Path,
    cost: Cost,
    steps: Sequence[Step],
    *,
    largest: int,
    precision: str,
    device: torch.device,
    teaching: Teaching = NOTHING_TAUGHT,
) -> Estimate:
    """Estimate a run whose largest micro-batch has `largest` tokens; the head counts for labelled tokens only.
    `teaching`: what the base reads once more."""
    config = model_config(base).to_dict()
    head = config["vocab_size"] * config["hidden_size"]
    tokens, labels = sum(s.tokens for s in steps), sum(s.labels for s in steps)
    weights = count_layer_weights(base)
    flop = cost.flop * weights * tokens + cost.head_flop * head * labels + teaching.flop(weights, head)
    rate = matmul_rate(device, precision)
    memory = (
        cost.held
        + largest * cost.activations * spread(steps, device)
        + teaching.memory(largest, config["hidden_size"], 4 if precision == "fp32" else 2)
        + CHUNK_LOGITS * 10
        + (FIXED_BYTES if device.type == "cpu" else 0)
    )
    note = f"{flop / 1e12:,.0f} TFLOP at {BUSY:.0%} of the {rate / 1e12:.2f} TFLOP/s measured now"
    return Estimate(memory, flop / (rate * BUSY), note)


def spread(steps: Sequence[Step], device: torch.device) -> float:
    """Bytes that the largest micro-batch comes to, as a factor on what is kept of it for the backward pass."""
    if device.type != "cpu":
        return GPU_SPREAD
    packs = sum(len(step.packs[0]) for step in steps)
    return CPU_SPREAD + CPU_WEAR * math.log(max(1, min(packs, WORN_AFTER)))


def activation_bytes(config: dict[str, Any], precision: str, checkpointing: bool) -> float:
    """Bytes kept for the backward pass per token: what alpaca.packed.layers and attention save."""
    width, inner, layers, kv = _shape(config)
    one_layer = 7 * width + 4 * kv + 2 * inner
    size = 4 if precision == "fp32" else 2
    return size * (layers * width + one_layer if checkpointing else layers * one_layer)


def _shape(config: dict[str, Any]) -> tuple[int, int, int, int]:
    """(width, inner width, layers, width of keys and of values) of a base."""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    kv = (config.get("num_key_value_heads") or heads) * (config.get("head_dim") or width // heads)
    return width, config["intermediate_size"], config["num_hidden_layers"], kv


def whole_activation_bytes(config: dict[str, Any], precision: str, checkpointing: bool) -> float:
    """The same where all weights are trained: SwiGLU's product is kept for its layer's weight. With bf16, what runs
    along the layers, and what goes into and out of the norms, is fp32."""
    width, inner, layers, kv = _shape(config)
    size = 4 if precision == "fp32" else 2
    one_layer = 2 * 4 * width + size * (4 * width + 2 * kv + 3 * inner)
    return layers * width * 4 + one_layer if checkpointing else layers * one_layer


def matmul_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of a plain matrix product on this machine now, measured in about a fifth of a second."""
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    _ = a @ a
    _wait(device)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < 0.2:
        _ = a @ a
        _wait(device)
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
