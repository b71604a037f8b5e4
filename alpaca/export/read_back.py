"""What was written in another format, read back into a model that can be asked here."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from alpaca.adapter.folder import load_adapter, verify_files
from alpaca.base.headers import read_config
from alpaca.base.load import load_model, load_tokenizer
from alpaca.convert.base_folder import convert
from alpaca.convert.family import scaled_rope
from alpaca.convert.gguf_metadata import Metadata, open_gguf
from alpaca.convert.gguf_model import GgufOrigin
from alpaca.convert.meta_shards import Checkpoint, find_shards, open_shard
from alpaca.convert.params import Params, read_params
from alpaca.convert.rotary import interleaved_to_halves
from alpaca.convert.safetensors_writer import TensorPlan, dtype_name, write_shard
from alpaca.errors import ConversionError
from alpaca.export.agreement import Reply
from alpaca.export.gguf_tensors import ROTARY, Names, architecture
from alpaca.export.in_memory import Transformers, listed
from alpaca.export.meta import PARAMS
from alpaca.export.portable import Portable
from alpaca.export.proof import Answered

if TYPE_CHECKING:
    import torch

NAME = "read back here"


def _room_beside(folder: Path) -> TemporaryDirectory[str]:
    """A folder for copies of what lies in `folder`: there, where its disk has room for them, or where the system keeps
    such if nothing may be written there."""
    return TemporaryDirectory(prefix=".read-back-", dir=folder if os.access(folder, os.W_OK) else None)


@contextmanager
def gguf(path: Path, precision: str) -> Iterator[Transformers]:
    """A GGUF file through the converter of alpaca/convert: its own weights, tokenizer, chat template and turn ends."""
    with _room_beside(path.parent) as place:
        origin = GgufOrigin(path, "F32" if precision == "fp32" else "BF16")
        tool = Transformers.of_folder(convert(origin, Path(place)), precision)
        tool.name = NAME
        yield tool


@contextmanager
def meta(folder: Path, ends: Sequence[int], precision: str) -> Iterator[Transformers]:
    """Meta's files, which carry no chat template: the prompts' own ids are asked."""
    with _room_beside(folder) as place:
        params = read_params(folder / PARAMS)
        _as_folder(folder, params, Path(place))
        yield PromptsOnly(load_model(Path(place), precision), None, ends, NAME)


class PromptsOnly(Transformers):
    """A model that comes without tokenizer and template."""

    def chat(self, asked: Sequence[Answered]) -> list[Reply]:
        return self.complete(asked)

    def complete(self, asked: Sequence[Answered]) -> list[Reply]:
        found = self.answers([ours.prompt for ours in asked], asked, self.ends)
        return [Reply(str(answer.tokens), answer.ended, answer.tokens, listed(answer)) for answer in found]


def _as_folder(folder: Path, params: Params, place: Path) -> None:
    """Hugging Face's weights and config of Meta's files, without a tokenizer."""
    shards = find_shards(folder)
    checkpoint = Checkpoint(shards, params, params.vocab_size)
    opened = [open_shard(path) for path in shards]
    plans = [
        TensorPlan(mapping.target, mapping.shape, dtype_name(checkpoint.dtypes[mapping.target]) or "")
        for mapping in checkpoint.mappings
    ]

    def tensors() -> Iterator[torch.Tensor]:
        for mapping in checkpoint.mappings:
            tensor = checkpoint.read(opened, mapping)
            yield interleaved_to_halves(tensor, mapping.rotary_heads) if mapping.rotary_heads else tensor

    write_shard(place / "model.safetensors", plans, tensors(), lambda count: None)
    plain = {"rope_type": "default", "rope_theta": params.rope_theta}
    scaled = params.use_scaled_rope
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": params.vocab_size,
        "hidden_size": params.dim, "intermediate_size": params.hidden, "num_hidden_layers": params.n_layers,
        "num_attention_heads": params.n_heads, "num_key_value_heads": params.kv_heads, "rms_norm_eps": params.norm_eps,
        "rope_parameters": scaled_rope(params.rope_theta, params.rope_scaling_factor or 8.0) if scaled else plain,
        "max_position_embeddings": 131_072 if scaled else 8192, "tie_word_embeddings": checkpoint.tied,
    }  # fmt: skip
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")


@contextmanager
def adapter_folder(folder: Path, base: Path, jinja: str, ends: Sequence[int], precision: str) -> Iterator[Transformers]:
    """A PEFT folder by PEFT's own loader, on the base, with the chat template that goes along."""
    from peft import PeftModel

    verify_files(folder, base)  # says what is wrong with it, where PEFT would end in its own words
    model = PeftModel.from_pretrained(load_model(base, precision), str(folder)).eval()
    yield Transformers(model, _templated(base, jinja), ends, "transformers with PEFT")


@contextmanager
def gguf_adapter(path: Path, base: Path, jinja: str, ends: Sequence[int], precision: str) -> Iterator[Transformers]:
    """An adapter's GGUF file, made a PEFT folder again and put on the base."""
    with _room_beside(path.parent) as place:
        read_adapter(path, read_config(base)).save(Path(place), base.name)
        model = load_adapter(load_model(base, precision), verify_files(Path(place), base))
        yield Transformers(model, _templated(base, jinja), ends, NAME)


def _templated(base: Path, jinja: str) -> Any:
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = jinja
    return tokenizer


def read_adapter(path: Path, config: dict[str, Any]) -> Portable:
    """The adapter in a GGUF file. `config`: of the base. Raises ConversionError for a file that holds none."""
    import numpy as np
    import torch

    reader = open_gguf(path)
    metadata = Metadata(path, reader)
    if metadata.get("adapter.type", str, "") != "lora":
        raise ConversionError(f"{path.name} is no LoRA adapter")
    found = {tensor.name: torch.from_numpy(np.array(tensor.data, np.float32)) for tensor in reader.tensors}
    names = Names(architecture(config), config["num_hidden_layers"])
    modules = {}
    for module in _modules(config):
        stem = names[f"{module}.weight"]
        if f"{stem}.lora_a" in found:
            a, b = (found.pop(f"{stem}.lora_{side}") for side in "ab")
            heads = next((key for part, key in ROTARY.items() if f"{module}.weight".endswith(part)), None)
            if heads:
                b = interleaved_to_halves(b, config.get(heads) or config["num_attention_heads"])
            modules[module] = (a, b)
    if found or not modules:
        raise ConversionError(f"{path.name} has tensors that no layer has: {', '.join(sorted(found)[:3]) or 'none'}")
    rank = max(len(a) for a, _ in modules.values())
    return Portable(rank, metadata.get("adapter.lora.alpha", float), modules, ())


def _modules(config: dict[str, Any]) -> Iterator[str]:
    for layer in range(config["num_hidden_layers"]):
        yield from (f"model.layers.{layer}.self_attn.{part}_proj" for part in "qkvo")
        yield from (f"model.layers.{layer}.mlp.{part}_proj" for part in ("gate", "up", "down"))
    yield "lm_head"
