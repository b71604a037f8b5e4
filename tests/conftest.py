"""Shared fixtures: tiny random LLaMA bases with a real tokenizer, and the real SmolLM2 base."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import pytest

ROOT = Path(__file__).resolve().parent.parent
SMOLLM2 = ROOT / "weights" / "smollm2-135m-instruct"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def all_but_long(values: Iterable[Any], *quick: Any) -> list[Any]:
    """Parameters for a test whose cases take long: those of `quick` run with the quick tests, the others apart."""
    values = list(values)
    assert set(quick) <= set(values)
    return [value if value in quick else pytest.param(value, marks=pytest.mark.long) for value in values]


def project_files(*suffixes: str) -> list[Path]:
    """Every file that is part of the project, or those with one of the suffixes; not what a user keeps beside them."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = listed.stdout.split("\0")[:-1]
    assert names, "these tests want a checkout made by git"
    found = [ROOT / name for name in names if not suffixes or Path(name).suffix in suffixes]
    return sorted(path for path in found if path.is_file())


def make_tokenizer(*, chat: bool = True, add_bos: bool = False) -> Any:
    """A byte-level BPE tokenizer trained on the shipped texts: special tokens first, as SmolLM2 has them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    corpus = ["Below is an instruction that describes a task.", "### Instruction:\n### Response:\n### Input:\n"] * 4
    bpe.train_from_iterator(corpus + ["the alpaca eats hay and grass in the field with the herd"] * 8, trainer)
    if add_bos:
        bos = [("<|im_start|>", 1)]
        bpe.post_processor = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=bos)
    named = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|pad|>",
        "unk_token": "<|endoftext|>",
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **named)
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_base(
    folder: Path, *, seed: int = 0, kv_heads: int = 2, tied: bool = True, layers: int = 2, chat: bool = True
) -> Path:
    """Save a tiny random LLaMA (hidden 64, 4 heads, fp32) with its tokenizer into `folder`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(chat=chat)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        initializer_range=0.2,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grouped-query attention, tied head, chat template."""
    return make_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="session")
def tiny_mha_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Multi-head attention, untied head, no chat template."""
    return make_base(tmp_path_factory.mktemp("bases") / "tiny-mha", seed=1, kv_heads=4, tied=False, chat=False)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real base; `make test` fetches and converts it before the tests start."""
    if not (SMOLLM2 / "config.json").is_file():
        pytest.fail(f"{SMOLLM2} is missing: run 'make weights/smollm2-135m-instruct/config.json' (make test does it)")
    return SMOLLM2
