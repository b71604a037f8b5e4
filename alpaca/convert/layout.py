"""Meta's tensors and Hugging Face's: names, shapes, and along which dimension model parallelism cut them."""

from __future__ import annotations

from dataclasses import dataclass

from alpaca.convert.params import Params


@dataclass(frozen=True)
class Mapping:
    """One tensor: `source` in Meta's files, `target` in Hugging Face's, whole `shape`.

    `cut` is the dimension that shards divide: 0 for column-parallel, 1 for row-parallel layers, None where every shard
    holds the whole tensor. `rotary_heads` is over 0 where the rows must be put into the other rotary order.
    """

    source: str
    target: str
    shape: tuple[int, ...]
    cut: int | None
    rotary_heads: int = 0

    def part_shape(self, n_shards: int) -> tuple[int, ...]:
        """Shape of the part in each of `n_shards` files."""
        return tuple(size // n_shards if axis == self.cut else size for axis, size in enumerate(self.shape))


# Rotary frequencies are computed, not read; Meta's older files carry them along.
IGNORED = frozenset({"rope.freqs"})


def mappings(params: Params, vocab_size: int, *, tied: bool, embedding_cut: int) -> list[Mapping]:
    """All tensors in the order in which they are written: embedding, layers, last norm, head (unless `tied`)."""
    out = [Mapping("tok_embeddings.weight", "model.embed_tokens.weight", (vocab_size, params.dim), embedding_cut)]
    for layer in range(params.n_layers):
        out += _layer(params, layer)
    out.append(Mapping("norm.weight", "model.norm.weight", (params.dim,), None))
    if not tied:
        out.append(Mapping("output.weight", "lm_head.weight", (vocab_size, params.dim), 0))
    return out


def _layer(params: Params, layer: int) -> list[Mapping]:
    dim, hidden = params.dim, params.hidden
    kv = params.kv_heads * params.head_dim
    old, new = f"layers.{layer}", f"model.layers.{layer}"
    return [
        Mapping(f"{old}.attention_norm.weight", f"{new}.input_layernorm.weight", (dim,), None),
        Mapping(f"{old}.attention.wq.weight", f"{new}.self_attn.q_proj.weight", (dim, dim), 0, params.n_heads),
        Mapping(f"{old}.attention.wk.weight", f"{new}.self_attn.k_proj.weight", (kv, dim), 0, params.kv_heads),
        Mapping(f"{old}.attention.wv.weight", f"{new}.self_attn.v_proj.weight", (kv, dim), 0),
        Mapping(f"{old}.attention.wo.weight", f"{new}.self_attn.o_proj.weight", (dim, dim), 1),
        Mapping(f"{old}.ffn_norm.weight", f"{new}.post_attention_layernorm.weight", (dim,), None),
        Mapping(f"{old}.feed_forward.w1.weight", f"{new}.mlp.gate_proj.weight", (hidden, dim), 0),
        Mapping(f"{old}.feed_forward.w3.weight", f"{new}.mlp.up_proj.weight", (hidden, dim), 0),
        Mapping(f"{old}.feed_forward.w2.weight", f"{new}.mlp.down_proj.weight", (dim, hidden), 1),
    ]
