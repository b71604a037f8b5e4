"""Tiny original tokenizers and checkpoints, made here."""

from __future__ import annotations

import base64
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

CORPUS = [
    "Alpacas eat grass and hay; they hum, and they live in herds.", "The alpaca is kept for its fibre in the Andes.",
    "Größe, Łódź, naïve café", "羊驼吃干草", "アルパカは草を食べます", "альпака ест траву",
    "numbers 0 1 2 3 4 5 6 7 8 9, don't!",
    "def feed(herd):\n    return hay * 2\n",
] * 6  # fmt: skip


@pytest.fixture(scope="session")
def sentencepiece_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA-like tokenizer.model: BPE, byte fallback, digits apart, spaces kept; 500 pieces."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "corpus.txt").write_text("\n".join(CORPUS), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "tokenizer"), vocab_size=500, model_type="bpe",
        byte_fallback=True, split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    return folder / "tokenizer.model"


@pytest.fixture(scope="session")
def tiktoken_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama 3-like tokenizer.model: 256 bytes and 152 merges in tiktoken's rank format."""
    words = [
        list(bytes([b]) for b in word.encode()) for line in CORPUS for word in line.replace(" ", "\0 ").split("\0")
    ]
    tokens = [bytes([value]) for value in range(256)]
    while len(tokens) < 408:
        pairs = Counter((a, b) for word in words for a, b in pairwise(word))
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        tokens.append(best[0] + best[1])
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = [best[0] + best[1]]
                i += 1
    path = tmp_path_factory.mktemp("tiktoken") / "tokenizer.model"
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)))
    return path


@pytest.fixture
def llama_input(tmp_path: Path, sentencepiece_file: Path) -> Path:
    """unconverted-weights/ with the tokenizer and a valid LLaMA 1 checkpoint in 7B/."""
    from meta_model import LLAMA_1, random_weights, write_checkpoint

    folder = tmp_path / "unconverted-weights"
    write_checkpoint(folder / "7B", LLAMA_1, random_weights(LLAMA_1, 500))
    shutil.copy(sentencepiece_file, folder / "tokenizer.model")
    return folder
