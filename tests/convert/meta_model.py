"""Meta's model written down once more, independently of the converter: complex rotary form, and its parallel cuts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

LLAMA_1 = {"dim": 64, "n_layers": 2, "n_heads": 8, "norm_eps": 1e-6, "multiple_of": 32, "vocab_size": -1}
LLAMA_3 = {
    "dim": 64, "n_layers": 2, "n_heads": 8, "n_kv_heads": 4, "norm_eps": 1e-5, "multiple_of": 16,
    "ffn_dim_multiplier": 1.3, "rope_theta": 500_000.0,
}  # fmt: skip


def hidden_width(params: dict[str, Any]) -> int:
    """The feed-forward width as Meta computes it."""
    width = int(2 * 4 * params["dim"] / 3)
    if params.get("ffn_dim_multiplier"):
        width = int(params["ffn_dim_multiplier"] * width)
    multiple = params.get("multiple_of", 256)
    return (width + multiple - 1) // multiple * multiple


def random_weights(params: dict[str, Any], vocab: int, *, seed: int = 0, tied: bool = False) -> dict[str, torch.Tensor]:
    """Whole tensors under Meta's names, fp32."""
    generator = torch.Generator().manual_seed(seed)
    dim, hidden = params["dim"], hidden_width(params)
    kv = (params.get("n_kv_heads") or params["n_heads"]) * dim // params["n_heads"]

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) / math.sqrt(columns) * 1.5

    def norm() -> torch.Tensor:
        return 1 + 0.2 * torch.randn(dim, generator=generator)

    weights = {"tok_embeddings.weight": matrix(vocab, dim) * 8, "norm.weight": norm()}
    if not tied:
        weights["output.weight"] = matrix(vocab, dim)
    for i in range(params["n_layers"]):
        weights |= {
            f"layers.{i}.attention_norm.weight": norm(), f"layers.{i}.ffn_norm.weight": norm(),
            f"layers.{i}.attention.wq.weight": matrix(dim, dim), f"layers.{i}.attention.wk.weight": matrix(kv, dim),
            f"layers.{i}.attention.wv.weight": matrix(kv, dim), f"layers.{i}.attention.wo.weight": matrix(dim, dim),
            f"layers.{i}.feed_forward.w1.weight": matrix(hidden, dim),
            f"layers.{i}.feed_forward.w3.weight": matrix(hidden, dim),
            f"layers.{i}.feed_forward.w2.weight": matrix(dim, hidden),
        }  # fmt: skip
    return weights


def cut(weights: dict[str, torch.Tensor], n_shards: int, *, cut_vocabulary: bool) -> list[dict[str, torch.Tensor]]:
    """Model-parallel parts: columns of wo, w2 (and of the embedding before Llama 3), rows of the rest, norms whole."""
    shards: list[dict[str, torch.Tensor]] = [{} for _ in range(n_shards)]
    for name, tensor in weights.items():
        if tensor.dim() == 1:
            parts = [tensor] * n_shards
        else:
            by_columns = any(part in name for part in (".wo.", ".w2.")) or ("tok_emb" in name and not cut_vocabulary)
            parts = list(tensor.chunk(n_shards, dim=1 if by_columns else 0))
        for shard, part in zip(shards, parts, strict=True):
            shard[name] = part.clone()
    return shards


def write_checkpoint(
    folder: Path, params: dict[str, Any], weights: dict[str, torch.Tensor], *, n_shards: int = 1,
    cut_vocabulary: bool = False, dtype: torch.dtype = torch.float32,
) -> None:  # fmt: skip
    """consolidated.NN.pth and params.json as Meta ships them, the rotary frequencies of older files included."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params))
    for number, shard in enumerate(cut(weights, n_shards, cut_vocabulary=cut_vocabulary)):
        tensors = {name: tensor.to(dtype) for name, tensor in shard.items()}
        tensors["rope.freqs"] = torch.ones(params["dim"] // params["n_heads"] // 2, dtype=dtype)
        torch.save(tensors, folder / f"consolidated.{number:02d}.pth")


def rotations(params: dict[str, Any], length: int, factor: float) -> torch.Tensor:
    """Unit complex numbers [length, head_dim / 2], with Llama 3.1's stretching of long wavelengths if asked for."""
    width = params["dim"] // params["n_heads"]
    frequencies = []
    for k in range(0, width, 2):
        frequency = params.get("rope_theta", 10000.0) ** (-k / width)
        wavelength = 2 * math.pi / frequency
        if params.get("use_scaled_rope"):
            if wavelength > 8192 / 1:
                frequency /= factor
            elif wavelength > 8192 / 4:
                weight = (8192 / wavelength - 1) / (4 - 1)
                frequency = (1 - weight) * frequency / factor + weight * frequency
        frequencies.append(frequency)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), torch.tensor(frequencies))
    return torch.polar(torch.ones_like(angles), angles)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def rotate(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """x [length, heads, head_dim]: neighbours are the real and imaginary part of one number."""
    numbers = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(numbers * turns[:, None, :]).flatten(2)


def forward(
    params: dict[str, Any], weights: dict[str, torch.Tensor], tokens: torch.Tensor, *, factor: float = 8.0
) -> torch.Tensor:
    """Logits [length, vocab] for `tokens` [length]."""
    heads, kv_heads = params["n_heads"], params.get("n_kv_heads") or params["n_heads"]
    length, eps = len(tokens), params["norm_eps"]
    turns = rotations(params, length, factor)
    mask = torch.full((length, length), float("-inf")).triu(1)
    x = weights["tok_embeddings.weight"][tokens]
    for i in range(params["n_layers"]):

        def w(name: str, layer: int = i) -> torch.Tensor:
            return weights[f"layers.{layer}.{name}.weight"]

        h = rms_norm(x, w("attention_norm"), eps)
        q = rotate((h @ w("attention.wq").T).view(length, heads, -1), turns)
        k = rotate((h @ w("attention.wk").T).view(length, kv_heads, -1), turns)
        v = (h @ w("attention.wv").T).view(length, kv_heads, -1)
        k, v = (t.repeat_interleave(heads // kv_heads, dim=1) for t in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1]) + mask
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
        x = x + mixed @ w("attention.wo").T
        h = rms_norm(x, w("ffn_norm"), eps)
        gate = torch.nn.functional.silu(h @ w("feed_forward.w1").T)
        x = x + (gate * (h @ w("feed_forward.w3").T)) @ w("feed_forward.w2").T
    head = weights.get("output.weight", weights["tok_embeddings.weight"])
    return rms_norm(x, weights["norm.weight"], eps) @ head.T


def logits_of(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [length, vocab] of a converted base in fp32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(tokens[None]).logits[0]
