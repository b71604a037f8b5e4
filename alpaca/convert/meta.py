"""Meta's original checkpoints as an origin: LLaMA 1, Llama 2, Code Llama, Llama 3 to 3.3."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from alpaca.convert.checklist import verify_files
from alpaca.convert.family import base_name, chosen_family, detect_family, rope_parameters
from alpaca.convert.meta_shards import Checkpoint, find_shards, open_shard
from alpaca.convert.params import read_params
from alpaca.convert.rotary import interleaved_to_halves
from alpaca.convert.safetensors_writer import TensorPlan, dtype_name
from alpaca.convert.sentencepiece_model import SentencepieceModel
from alpaca.convert.source import SourceFile
from alpaca.convert.tiktoken_model import TiktokenModel, is_tiktoken
from alpaca.errors import ConversionError

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast


class MetaOrigin:
    """The checkpoint in `folder`; its tokenizer is there or one folder up. `instruct` adds the chat template."""

    kind = "meta"

    def __init__(self, folder: Path, *, family: str | None = None, instruct: bool = False) -> None:
        self._params = read_params(folder / "params.json")
        shards = find_shards(folder)
        self._model = _open_tokenizer(folder)
        vocab_size = self._vocab_size()
        self._checkpoint = Checkpoint(shards, self._params, vocab_size)
        tied = self._checkpoint.tied
        self._family, reason = (
            chosen_family(family, self._model.kind)
            if family
            else detect_family(self._params, self._model.kind, tied=tied, folder_name=folder.name)
        )
        if instruct and self._family.instruct_suffix is None:
            raise ConversionError("--instruct: LLaMA 1 has no instruct version; omit the flag")
        self._instruct = instruct
        self._rope, scaling = rope_parameters(self._family, self._params)
        self.name = base_name(folder.name, self._family, instruct=instruct)
        self.files = [*shards, folder / "params.json", self._model.path]
        self.options: dict[str, object] = {"instruct": instruct, "family": self._family.name}
        self.plans = [
            TensorPlan(mapping.target, mapping.shape, dtype_name(self._checkpoint.dtypes[mapping.target]) or "")
            for mapping in self._checkpoint.mappings
        ]
        self.notes = [f"family: {self._family.name} ({reason})", f"rope: theta {self._params.rope_theta:g}, {scaling}"]
        self.notes.append(
            f"shards: {len(shards)}; head: {'tied to the embedding' if tied else 'its own'}; vocabulary: {vocab_size}"
        )
        if not instruct and any(word in folder.name.lower() for word in ("chat", "instruct")):
            self.notes.append(f"{folder.name} sounds like a chat model: add --instruct to give it its chat template")

    def verify(self) -> tuple[SourceFile, ...]:
        """Hash all files; see `verify_files` for the errors."""
        return verify_files(self.files)

    def tensors(self, plans: list[TensorPlan]) -> Iterator[torch.Tensor]:
        """Map the files anew for these tensors and let go of them afterwards: pages read once must not pile up."""
        opened = [open_shard(path) for path in self._checkpoint.shards]
        by_target = {mapping.target: mapping for mapping in self._checkpoint.mappings}
        for plan in plans:
            mapping = by_target[plan.name]
            tensor = self._checkpoint.read(opened, mapping)
            yield interleaved_to_halves(tensor, mapping.rotary_heads) if mapping.rotary_heads else tensor

    def config(self) -> LlamaConfig:
        """Sizes from params.json, context and rope scaling from the family."""
        from transformers import LlamaConfig

        params = self._params
        return LlamaConfig(
            architectures=["LlamaForCausalLM"], vocab_size=self.plans[0].shape[0], hidden_size=params.dim,
            intermediate_size=params.hidden, num_hidden_layers=params.n_layers, num_attention_heads=params.n_heads,
            num_key_value_heads=params.kv_heads, head_dim=params.head_dim, rms_norm_eps=params.norm_eps,
            max_position_embeddings=self._family.context, rope_parameters=self._rope,
            tie_word_embeddings=self._checkpoint.tied, bos_token_id=self._model.bos_id, pad_token_id=self._pad_id(),
            eos_token_id=self._model.generation_eos(self._family, instruct=self._instruct), dtype=self._dtype(),
        )  # fmt: skip

    def generation_config(self) -> GenerationConfig:
        """BOS and EOS of the tokenizer; a padding id only where the release has one."""
        from transformers import GenerationConfig

        return GenerationConfig(
            bos_token_id=self._model.bos_id, pad_token_id=self._pad_id(),
            eos_token_id=self._model.generation_eos(self._family, instruct=self._instruct),
        )  # fmt: skip

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The fast tokenizer of the release."""
        return self._model.convert(self._family, instruct=self._instruct)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Compare with sentencepiece or tiktoken itself on text in many scripts."""
        self._model.check(tokenizer)

    def spare_copies(self) -> list[str]:
        """People who followed the original tutorial look for `weights/tokenizer`."""
        return ["tokenizer"]

    def _vocab_size(self) -> int:
        stated = self._params.vocab_size
        if stated == -1:
            return self._model.size
        if stated < self._model.size:
            raise ConversionError(
                f"params.json says vocab_size {stated}, but {self._model.path} has {self._model.size} tokens; "
                "they are from different releases"
            )
        return stated

    def _pad_id(self) -> int | None:
        return self._model.pad_id(self._family)

    def _dtype(self) -> str:
        most, _ = Counter(plan.dtype for plan in self.plans).most_common(1)[0]
        return {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[most]


def _open_tokenizer(folder: Path) -> SentencepieceModel | TiktokenModel:
    candidates = [folder / "tokenizer.model", folder.parent / "tokenizer.model"]
    for path in candidates:
        if path.is_file():
            return TiktokenModel(path) if is_tiktoken(path) else SentencepieceModel(path)
    raise ConversionError(
        f"tokenizer.model is missing; it comes with the checkpoint and goes to {candidates[1]} or {candidates[0]}"
    )
