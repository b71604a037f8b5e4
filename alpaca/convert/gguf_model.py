"""GGUF files as an origin: LLaMA architecture, any quantization, made dense in bfloat16 or float32."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpaca.convert.family import scaled_rope
from alpaca.convert.gguf_metadata import Metadata, open_gguf
from alpaca.convert.gguf_tokenizer import GgufTokenizer
from alpaca.convert.rotary import interleaved_to_halves
from alpaca.convert.safetensors_writer import TensorPlan
from alpaca.convert.source import SourceFile, hash_files
from alpaca.errors import ConversionError

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}  # fmt: skip
_BLOCK = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_ROPE_FACTORS = "rope_freqs.weight"
_VALUES_AT_ONCE = 4 << 20


class GgufOrigin:
    """The model in a GGUF file. `dtype`: what it is made dense in, as safetensors spells it: BF16 or F32."""

    kind = "gguf"

    def __init__(self, path: Path, dtype: str = "BF16") -> None:
        self._dtype = {"BF16": "bfloat16", "F32": "float32"}[dtype]
        self._reader = open_gguf(path)
        meta = Metadata(path, self._reader)
        _refuse_other_models(meta)
        self._meta = meta
        self._dim, self._layers = meta.get("llama.embedding_length", int), meta.get("llama.block_count", int)
        self._hidden = meta.get("llama.feed_forward_length", int)
        self._heads = meta.get("llama.attention.head_count", int)
        self._kv_heads = meta.get("llama.attention.head_count_kv", int, self._heads)
        self._context = meta.get("llama.context_length", int)
        if (
            min(self._dim, self._layers, self._hidden, self._heads, self._kv_heads, self._context) < 1
            or self._heads % self._kv_heads
        ):
            raise ConversionError(
                f"{path.name}: impossible sizes in its metadata (dim {self._dim}, heads {self._heads}/{self._kv_heads})"
            )
        self._head_dim = meta.get("llama.attention.key_length", int, self._dim // self._heads)
        self._by_name = {tensor.name: tensor for tensor in self._reader.tensors}
        _refuse_unknown_quantizations(path, self._reader.tensors)
        self._tokenizer = GgufTokenizer(meta, self._context)
        self._sources = self._map_tensors()
        self._rope = self._rope_parameters()
        self.name = plain_name(path.stem)
        self.files = [path]
        self.options: dict[str, object] = {}
        self.plans = [
            TensorPlan(target, _shape_of(self._by_name[name]), dtype) for target, name in self._sources.items()
        ]
        self.notes = [f"quantization: {self._types()} → {self._dtype}", self._tokenizer.note, self._special_note()]

    def verify(self) -> tuple[SourceFile, ...]:
        """Hash the file."""
        return hash_files(self.files, f"hashing {self.files[0].name}")[0]

    def tensors(self, plans: list[TensorPlan]) -> Iterator[torch.Tensor]:
        """Dequantize tensor by tensor, some megabytes at once; then let the kernel forget the pages that were read."""
        heads = {"q_proj": self._heads, "k_proj": self._kv_heads}
        for plan in plans:
            tensor = _dequantize(self._by_name[self._sources[plan.name]], self._dtype)
            rotary = next((count for part, count in heads.items() if part in plan.name), 0)
            yield interleaved_to_halves(tensor, rotary) if rotary else tensor
        mapped: Any = getattr(self._reader.data, "_mmap", None)
        if mapped is not None and hasattr(mapped, "madvise"):
            mapped.madvise(mmap.MADV_DONTNEED)

    def config(self) -> LlamaConfig:
        """Sizes and ids from the metadata."""
        from transformers import LlamaConfig

        ids = self._tokenizer.ids
        return LlamaConfig(
            architectures=["LlamaForCausalLM"], vocab_size=self.plans[0].shape[0], hidden_size=self._dim,
            intermediate_size=self._hidden, num_hidden_layers=self._layers, num_attention_heads=self._heads,
            num_key_value_heads=self._kv_heads, head_dim=self._head_dim, max_position_embeddings=self._context,
            rms_norm_eps=_decimal(self._meta.get("llama.attention.layer_norm_rms_epsilon", float)),
            rope_parameters=self._rope, tie_word_embeddings="lm_head.weight" not in self._sources,
            bos_token_id=ids.bos, eos_token_id=ids.eos, pad_token_id=ids.pad, dtype=self._dtype,
        )  # fmt: skip

    def generation_config(self) -> GenerationConfig:
        """Special ids of the tokenizer; a chat model's answers may end with the turn as well as with the text."""
        from transformers import GenerationConfig

        ids = self._tokenizer.ids
        ends = list(ids.ends) if len(ids.ends) > 1 else ids.eos
        return GenerationConfig(bos_token_id=ids.bos, eos_token_id=ends, pad_token_id=ids.pad)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer inside the file."""
        return self._tokenizer.build()

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Special ids, and text that survives encoding and decoding."""
        self._tokenizer.check(tokenizer)

    def spare_copies(self) -> list[str]:
        """None."""
        return []

    def _map_tensors(self) -> dict[str, str]:
        """Hugging Face name → GGUF name in the order of writing; every shape is checked."""
        path = self._meta.path
        wanted = {
            "token_embd.weight": None,
            **{f"blk.{i}.{part}.weight": None for i in range(self._layers) for part in _BLOCK},
        }
        wanted |= {"output_norm.weight": None} | ({"output.weight": None} if "output.weight" in self._by_name else {})
        if missing := [name for name in wanted if name not in self._by_name]:
            raise ConversionError(f"{path.name} lacks {len(missing)} tensors: {', '.join(missing[:5])}")
        if extra := [name for name in self._by_name if name not in wanted and name != _ROPE_FACTORS]:
            raise ConversionError(f"{path.name} has tensors that a LLaMA model has not: {', '.join(extra[:5])}")
        rows = int(self._by_name["token_embd.weight"].shape[-1])
        if rows < len(self._tokenizer.tokens):
            raise ConversionError(f"{path.name}: {len(self._tokenizer.tokens)} tokens, but only {rows} embeddings")
        for name in wanted:
            found = _shape_of(self._by_name[name])
            if found != (expected := self._shape(name, rows)):
                raise ConversionError(f"{path.name}: {name} has shape {list(found)}, expected {list(expected)}")
        return {_target(name): name for name in wanted}

    def _shape(self, name: str, rows: int) -> tuple[int, ...]:
        q, kv = self._heads * self._head_dim, self._kv_heads * self._head_dim
        if name in ("token_embd.weight", "output.weight"):
            return (rows, self._dim)
        part = name.split(".")[-2]
        return {
            "attn_q": (q, self._dim), "attn_k": (kv, self._dim), "attn_v": (kv, self._dim),
            "attn_output": (self._dim, q), "ffn_gate": (self._hidden, self._dim), "ffn_up": (self._hidden, self._dim),
            "ffn_down": (self._dim, self._hidden),
        }.get(part, (self._dim,))  # fmt: skip

    def _rope_parameters(self) -> dict[str, object]:
        """Plain, or Llama 3.1's scaling, which GGUF stores as one divisor per frequency: its largest is the factor."""
        theta = _decimal(self._meta.get("llama.rope.freq_base", float, 10_000.0))
        if _ROPE_FACTORS not in self._by_name:
            return {"rope_type": "default", "rope_theta": theta}
        import numpy as np

        divisors = np.array(self._by_name[_ROPE_FACTORS].data, dtype=np.float64).reshape(-1)
        rope = scaled_rope(theta, round(float(divisors.max()), 3))
        expected = llama3_divisors(rope, self._head_dim)
        if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-3):
            raise ConversionError(
                f"{self._meta.path.name}: {_ROPE_FACTORS} scales rotary frequencies in a way that is not Llama 3.1's"
            )
        return rope

    def _types(self) -> str:
        names = [self._by_name[name].tensor_type.name for name in self._sources.values()]
        return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))

    def _special_note(self) -> str:
        ids, tokens = self._tokenizer.ids, self._tokenizer.tokens
        named = {"bos": ids.bos, "eos": ids.eos, "unk": ids.unk, "pad": ids.pad}
        note = "special tokens: " + ", ".join(
            f"{k} {tokens[v]} ({v})" if v is not None else f"{k} none" for k, v in named.items()
        )
        others = ", ".join(f"{tokens[i]} ({i})" for i in ids.ends[1:])
        return f"{note}; answers end at {others} too" if others else note


def plain_name(stem: str) -> str:
    """The base's name, without the quantization: `SmolLM2-135M-Instruct.Q4_1` → `smollm2-135m-instruct`."""
    plain = re.sub(r"[.\-_](I?Q\d\w*|TQ\d_\d|BF16|FP?16|FP?32|MXFP4)$", "", stem, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9.]+", "-", plain.lower()).strip("-.") or "base"


def _refuse_other_models(meta: Metadata) -> None:
    name = meta.path.name
    architecture = meta.get("general.architecture", str)
    if architecture != "llama":
        raise ConversionError(f"{name} is a {architecture!r} model; only the 'llama' architecture can be converted")
    if (experts := meta.get("llama.expert_count", int, 0)) > 0:
        raise ConversionError(f"{name} has {experts} experts; only dense models can be converted")
    scaling = meta.get("llama.rope.scaling.type", str, "none")
    if scaling not in ("none", ""):
        raise ConversionError(
            f"{name} uses {scaling!r} rope scaling, which is not converted (plain and Llama 3.1's are)"
        )
    heads = meta.get("llama.attention.head_count", int)
    head_dim = meta.get("llama.attention.key_length", int, meta.get("llama.embedding_length", int) // max(heads, 1))
    rotated = meta.get("llama.rope.dimension_count", int, head_dim)
    if rotated != head_dim or meta.get("llama.attention.value_length", int, head_dim) != head_dim:
        raise ConversionError(f"{name} rotates {rotated} of {head_dim} dimensions per head; a LLaMA model rotates all")


def _target(name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    _, layer, part, suffix = name.split(".")
    return f"model.layers.{layer}.{_BLOCK[part]}.{suffix}"


def _dequantize(tensor: Any, dtype: str) -> torch.Tensor:
    """A dense copy of a GGUF tensor [rows, columns] or [columns], made some rows at a time."""
    import numpy as np
    import torch
    from gguf import dequantize

    shape = _shape_of(tensor)
    out = torch.empty(shape, dtype=getattr(torch, dtype))
    step = max(1, _VALUES_AT_ONCE // shape[-1]) if len(shape) > 1 else shape[0]
    for start in range(0, shape[0], step):
        values = dequantize(tensor.data[start : start + step], tensor.tensor_type)
        out[start : start + step] = torch.from_numpy(np.require(values, requirements="W"))
    return out


def _shape_of(tensor: Any) -> tuple[int, ...]:
    """Shape as numpy and torch order it; GGUF has the fastest dimension first."""
    return tuple(int(size) for size in reversed(tensor.shape))


def _refuse_unknown_quantizations(path: Path, tensors: list[Any]) -> None:
    from gguf import dequantize

    for kind, tensor in {tensor.tensor_type: tensor for tensor in tensors}.items():
        try:
            dequantize(tensor.data[:1], kind)
        except NotImplementedError:
            raise ConversionError(
                f"{path.name}: {tensor.name} is quantized as {kind.name}, which can't be made dense"
            ) from None


def llama3_divisors(rope: dict[str, Any], head_dim: int) -> Any:
    """What Llama 3.1's scaling divides each of the head_dim / 2 frequencies by, as published with that model."""
    import numpy as np

    frequencies = rope["rope_theta"] ** (-np.arange(0, head_dim, 2) / head_dim)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / rope["factor"] + smooth)


def _decimal(value: float) -> float:
    """The shortest decimal that a 32-bit metadata value stands for: 9.999999747378752e-06 is 1e-05."""
    import numpy as np

    return float(str(np.float32(value)))
