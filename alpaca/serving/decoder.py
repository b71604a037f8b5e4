"""The base's forward pass over whatever a step holds: rows that decode and chunks of prompts, side by side.

It reads the weights of transformers' model and its rotary table, and computes what its forward() computes, with
fewer and larger operations: q, k and v in one product, gate and up in another, keys and values written in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from alpaca.errors import BadBase
from alpaca.serving.attention import Attended, attend
from alpaca.serving.cache import KeyValueCache, head_dim
from alpaca.serving.fused import Fused, Layer
from alpaca.serving.kernels import Kernels, Matrix
from alpaca.serving.norm import RmsNorm
from alpaca.serving.product import columns_whole, product
from alpaca.serving.projection import Mix, Projection
from alpaca.serving.quantized import FEW, Int8Weight

FAMILY = ("llama", "mistral", "qwen2", "qwen3")
"""Bases with LLaMA's forward pass: norm, attention with rotary positions, norm, gated MLP."""
FIXED_ROPE = ("default", "linear", "llama3", "yarn")
"""Rotary tables that do not depend on how long the sequence is."""


@dataclass(frozen=True)
class Step:
    """What one forward pass computes. Rows beyond those in `parts` are padding."""

    tokens: Tensor
    """[rows] token ids."""
    positions: Tensor
    """[rows] in their sequence, from 0."""
    where: Tensor
    """[written] where in the cache each row's key and value go; rows that are padding come last and have no place."""
    parts: Sequence[Attended]
    """Rows whose attention is torch's."""
    wanted: Tensor
    """[answers] rows whose next token is asked for."""
    mix: Mix | None = None
    head_mix: Mix | None = None
    """The same for the rows in `wanted`, where the head itself can be adapted."""
    alone: tuple[Tensor, Tensor] | None = None
    """Where kernels attend: [written] at which token of the cache each row's answer begins, and how much it reads, its
    own token included, or 0 for a row in `parts`."""


@dataclass
class Decoder:
    """A base ready to serve. It takes the model over: its linear layers become views of larger ones."""

    model: Any
    columns: int
    context: int
    bits: str | None = None
    """int8 or int4: quantise the layers on a CPU as they are taken over, and the head in int8."""
    kernels: Kernels | None = None
    layers: list[Layer] = field(init=False)
    projections: dict[str, tuple[Projection, int]] = field(init=False)
    """Dotted name of every linear layer of the base → where it is computed, and as which member."""

    def __post_init__(self) -> None:
        check_family(self.model.config)
        config, inner = self.model.config, self.model.model
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads
        self.head_dim = head_dim(config)
        self.eps: float = config.rms_norm_eps
        self.embedding: Tensor = inner.embed_tokens.weight
        self.norm = self._norm(inner.norm)
        self.projections = {}
        self.layers = [self._layer(f"model.layers.{number}", layer) for number, layer in enumerate(inner.layers)]
        tied = config.tie_word_embeddings or self.model.lm_head.weight is self.embedding
        self.head: Tensor = self.model.lm_head.weight
        self.head_projection = None if tied else self._projection("lm_head", self.model, ["lm_head"])
        tiles = self.kernels is not None and self.kernels.tiles
        self._quantized_head = Int8Weight(self.head, for_kernels=tiles) if tied and self.bits else None
        self.members = {1} if self.kernels else {projection.members for projection, _ in self.projections.values()}
        self._head_matrix: Matrix | None = None
        if self.kernels is not None and tied:
            self._head_matrix = self._quantized_head.matrix if self._quantized_head else Matrix.dense(self.head)
        self.cos, self.sin = self._rotary_table(inner.rotary_emb)
        self._fused = self._fuse()

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    def forward(self, step: Step, cache: KeyValueCache) -> Tensor:
        """Logits [answers, vocabulary] in fp32; this step's keys and values are in the cache afterwards."""
        x = functional.embedding(step.tokens, self.embedding)
        x = x if self.bits or self.kernels else columns_whole(x)
        if self._fused is not None and step.alone is not None and self._fits(self._fused, step):
            strengths = step.mix.strengths[1] if step.mix else None
            x = self._fused.run(x, step.positions, step.where, cache.memory, step.alone, strengths)
        else:
            turn = None if step.alone else self._turn(step.positions)
            for number, layer in enumerate(self.layers):
                x = x + self._attention(number, layer, layer.input_norm(x), step, turn, cache)
                x = x + layer.down(self._gated(layer.gate_up(layer.mlp_norm(x), step.mix)), step.mix)
        x = self.norm(x if len(step.wanted) == len(x) else x[step.wanted])
        if self.head_projection is not None:
            return self.head_projection(x, step.head_mix).float()
        if self.kernels is not None and self._head_matrix is not None:
            return self.kernels.product(x, self._head_matrix, wide=True)
        if self._quantized_head is not None and len(x) <= FEW["int8"]:
            return self._quantized_head.product(x).float()
        return product(x, self.head).float()

    def _fits(self, fused: Fused, step: Step) -> bool:
        """Whether nothing in a step is torch's: no long chunk of a prompt, and no DoRA."""
        return fused.takes(len(step.tokens)) and not step.parts and not (step.mix and step.mix.gains)

    def _gated(self, gate_up: Tensor) -> Tensor:
        if self.kernels is not None:
            return self.kernels.gated(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate).mul_(up)

    def _turn(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and signed sin of every head of the rows, [rows, heads + 2 · kv_heads, head_dim]; values keep theirs."""
        turned, fixed = self.heads + self.kv_heads, self.kv_heads
        cos, sin = (table[positions, None].expand(-1, turned, -1) for table in (self.cos, self.sin))
        shape = (len(positions), fixed, self.head_dim)
        return torch.cat((cos, cos.new_ones(shape)), 1), torch.cat((sin, sin.new_zeros(shape)), 1)

    def _attention(
        self,
        number: int,
        layer: Layer,
        x: Tensor,
        step: Step,
        turn: tuple[Tensor, Tensor] | None,
        cache: KeyValueCache,
    ) -> Tensor:
        rows, written, turned = len(x), len(step.where), self.heads + self.kv_heads
        heads = layer.qkv(x, step.mix).contiguous().view(rows, turned + self.kv_heads, self.head_dim)
        if layer.query_norm is not None and layer.key_norm is not None:
            queries, keys, values = heads.split((self.heads, self.kv_heads, self.kv_heads), 1)
            heads = torch.cat((layer.query_norm(queries), layer.key_norm(keys), values), 1)
        scale = self.head_dim**-0.5
        if self.kernels is not None and step.alone is not None:
            tables, memory = (self.cos, self.sin), cache.memory[number]
            found = self.kernels.attention(
                heads, self.heads, tables, step.positions, step.where, memory, *step.alone, scale
            )
            queries = heads[:, : self.heads]
        else:
            assert turn is not None
            heads = rotate(heads, *turn)
            cache.write(number, step.where, heads[:written, self.heads :])
            queries = heads[:, : self.heads]
            found = torch.empty_like(queries) if written == rows else heads.new_zeros(queries.shape)
        attend(queries, cache.keys[number], cache.values[number], step.parts, scale, found)
        return layer.out(found.view(rows, -1), step.mix)

    # --- taking the model over ------------------------------------------------------------------------------------
    def _layer(self, name: str, layer: Any) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        return Layer(
            self._norm(layer.input_layernorm),
            self._projection(f"{name}.self_attn", attention, ["q_proj", "k_proj", "v_proj"]),
            self._projection(f"{name}.self_attn", attention, ["o_proj"]),
            self._norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
            self._norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
            self._norm(layer.post_attention_layernorm),
            self._projection(f"{name}.mlp", mlp, ["gate_proj", "up_proj"]),
            self._projection(f"{name}.mlp", mlp, ["down_proj"]),
        )

    def _fuse(self) -> Fused | None:
        if self.kernels is None or any(layer.qkv.matrix is None for layer in self.layers):
            return None
        heads = (self.heads, self.kv_heads, self.head_dim)
        return Fused(self.kernels, self.layers, heads=heads, eps=self.eps, tables=(self.cos, self.sin))

    def _norm(self, module: nn.Module) -> RmsNorm:
        weight: Tensor = module.weight  # type: ignore[assignment]
        return RmsNorm(weight, self.eps, self.kernels)

    def _projection(self, prefix: str, module: nn.Module, names: list[str]) -> Projection:
        bits = "int8" if self.bits and names == ["lm_head"] else self.bits
        projection = Projection([getattr(module, name) for name in names], self.columns, bits, self.kernels)
        for member, name in enumerate(names):
            full = name if name == "lm_head" else f"{prefix}.{name}"
            self.projections[full] = (projection, member)
        return projection

    def _rotary_table(self, rotary: Any) -> tuple[Tensor, Tensor]:
        """cos and signed sin of every position: [context, head_dim] each."""
        positions = torch.arange(self.context, device=self.device)[None]
        cos, sin = rotary(self.embedding[:1], positions)
        half = self.head_dim // 2
        sin = torch.cat((-sin[..., :half], sin[..., half:]), -1)
        return cos[0].to(self.dtype), sin[0].to(self.dtype)


def rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Rotary positions (arXiv:2104.09864) as LLaMA has them: x, tables [rows, heads, head_dim]."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), signed_sin)


def check_family(config: Any) -> None:
    """Raise BadBase for a base whose forward pass is another than LLaMA's."""
    if config.model_type not in FAMILY:
        raise BadBase(f"the base is a {config.model_type} model: the engine serves {', '.join(FAMILY)}")
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in FIXED_ROPE:
        raise BadBase(f"the base's rotary positions are '{kind}': the engine serves {', '.join(FIXED_ROPE)}")
    if config.hidden_act != "silu":
        raise BadBase(f"the base's MLP uses {config.hidden_act}: the engine serves silu")


def longest_context(config: Any) -> int:
    """How many tokens the base attends to."""
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True):
        return min(int(window), int(config.max_position_embeddings))
    return int(config.max_position_embeddings)
