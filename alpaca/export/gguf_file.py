"""One GGUF file: sizes, tokenizer, chat template and weights, written tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpaca.export.gguf_tensors import Names, Stored, architecture, as_stored, stored_as
from alpaca.export.gguf_vocabulary import Vocabulary
from alpaca.export.rope import rope_settings

if TYPE_CHECKING:
    import torch
    from gguf import GGUFWriter


@dataclass(frozen=True)
class GgufModel:
    """What a file is made of, but for the weights: the base's config.json, its tokenizer, and words for people."""

    config: dict[str, Any]
    vocabulary: Vocabulary
    chat_template: str | None
    name: str
    license: str | None = None
    base: str | None = None


def plan_file(model: GgufModel, shapes: dict[str, tuple[int, ...]], wanted: str) -> list[Stored]:
    """The tensors in the order of writing. `shapes`: of the model's tensors, by Hugging Face's names."""
    names = Names(architecture(model.config), model.config["num_hidden_layers"])
    return [Stored(names[name], name, shape, stored_as(name, shape, wanted)) for name, shape in shapes.items()]


def write_file(
    path: Path,
    model: GgufModel,
    plan: list[Stored],
    wanted: str,
    tensors: Iterable[torch.Tensor],
    update: Callable[[int], None],
) -> None:
    """Write the file; `tensors` (float32) are asked for one after the other, in the order of `plan`."""
    import numpy as np
    from gguf import GGUFWriter

    out = GGUFWriter(path, architecture(model.config))
    _describe(out, model, wanted)
    if (factors := _rope_factors(model.config)) is not None:
        out.add_tensor("rope_freqs.weight", factors)
    for stored in plan:
        out.add_tensor_info(stored.name, stored.shape, np.dtype(np.float32), stored.n_bytes, stored.kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_ti_data_to_file()
    try:
        if factors is not None:
            out.write_tensor_data(factors)
        for stored, tensor in zip(plan, tensors, strict=True):
            out.write_tensor_data(as_stored(tensor, stored, model.config))
            update(stored.n_bytes)
    finally:
        out.close()


def _describe(out: GGUFWriter, model: GgufModel, wanted: str) -> None:
    """Names, sizes and the tokenizer."""
    from gguf import GGML_QUANT_VERSION, GGUFType, LlamaFileType

    config = model.config
    heads, dim = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or dim // heads
    out.add_type(GGUFType.MODEL)
    out.add_name(model.name)
    if model.license:
        out.add_license(model.license)
    if model.base and model.base != model.name:
        out.add_base_model_count(1)
        out.add_base_model_name(0, model.base)
    out.add_block_count(config["num_hidden_layers"])
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(dim)
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(heads)
    out.add_head_count_kv(config.get("num_key_value_heads") or heads)
    out.add_key_length(head_dim)
    out.add_value_length(head_dim)
    out.add_rope_dimension_count(head_dim)
    out.add_rope_freq_base(rope_settings(config)["rope_theta"])
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_vocab_size(config["vocab_size"])
    out.add_file_type(LlamaFileType.ALL_F32 if wanted == "F32" else LlamaFileType[f"MOSTLY_{wanted}"])
    out.add_quantization_version(GGML_QUANT_VERSION)
    model.vocabulary.write(out)
    if model.chat_template:
        out.add_chat_template(model.chat_template)


def _rope_factors(config: dict[str, Any]) -> Any:
    """Llama 3.1's scaling as the file stores it, one divisor for each frequency; None where there is none."""
    import numpy as np

    from alpaca.convert.gguf_model import llama3_divisors

    rope = rope_settings(config)
    if rope["rope_type"] == "default":
        return None
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return llama3_divisors(rope, head_dim).astype(np.float32)
