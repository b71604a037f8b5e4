"""What a base can be made from; a Meta checkpoint and a GGUF file both look like this to the writer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from alpaca.convert.safetensors_writer import TensorPlan
from alpaca.convert.source import SourceFile

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast


class Origin(Protocol):
    """Made only if everything that can be checked without reading the weights has been checked."""

    kind: str
    name: str
    """Name of the folder that the base gets."""
    files: list[Path]
    options: dict[str, object]
    notes: list[str]
    """What was found out, with reasons: lines for people."""
    plans: list[TensorPlan]

    def verify(self) -> tuple[SourceFile, ...]:
        """Read every file once: hashes, and the checklist where there is one."""

    def tensors(self, plans: list[TensorPlan]) -> Iterator[torch.Tensor]:
        """The planned tensors one after the other; the memory behind them is given back at the end."""

    def config(self) -> LlamaConfig:
        """The model's config."""

    def generation_config(self) -> GenerationConfig:
        """Ids that begin, end and pad an answer."""

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer, chat template included where there is one."""

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Raises ConversionError unless `tokenizer`, reloaded, does what the original does."""

    def spare_copies(self) -> list[str]:
        """Names beside the base under which the tokenizer is written once more."""
