"""Converted tokenizers give the ids of sentencepiece and of tiktoken themselves."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from alpaca.convert import bpe
from alpaca.convert.family import FAMILIES
from alpaca.convert.sentencepiece_model import SentencepieceModel
from alpaca.convert.tiktoken_model import TiktokenModel, is_tiktoken, read_ranks, special_tokens
from alpaca.errors import ConversionError

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="▁\0"), max_size=40) | st.text("alpcs ehumr,.19\n\t'é羊")


@pytest.fixture(scope="module")
def llama(sentencepiece_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    from sentencepiece import SentencePieceProcessor

    folder = tmp_path_factory.mktemp("llama")
    SentencepieceModel(sentencepiece_file).convert(FAMILIES["llama"], instruct=False).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder), SentencePieceProcessor(model_file=str(sentencepiece_file))


@pytest.fixture(scope="module")
def llama_3(tiktoken_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    folder = tmp_path_factory.mktemp("llama-3")
    TiktokenModel(tiktoken_file).convert(FAMILIES["llama-3"], instruct=False).save_pretrained(folder)
    split = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    ranks = load_tiktoken_bpe(str(tiktoken_file))
    original = tiktoken.Encoding("tiny", pat_str=split, mergeable_ranks=ranks, special_tokens={})
    return AutoTokenizer.from_pretrained(folder), original


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXT)
def test_llama_encodes_and_decodes_as_sentencepiece(llama: tuple[Any, Any], text: str) -> None:
    tokenizer, original = llama
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == original.encode(text)
    assert tokenizer.decode(ids) == text


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXT)
def test_llama_3_encodes_and_decodes_as_tiktoken(llama_3: tuple[Any, Any], text: str) -> None:
    tokenizer, original = llama_3
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == original.encode_ordinary(text)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", bpe.SAMPLES)
def test_many_scripts(llama: tuple[Any, Any], llama_3: tuple[Any, Any], text: str) -> None:
    assert llama[0].encode(text, add_special_tokens=False) == llama[1].encode(text)
    assert llama_3[0].encode(text, add_special_tokens=False) == llama_3[1].encode_ordinary(text)


def test_llama_puts_bos_in_front_and_unknown_characters_into_bytes(llama: tuple[Any, Any]) -> None:
    tokenizer, _ = llama
    assert tokenizer("the")["input_ids"][0] == 1 and tokenizer("the")["input_ids"].count(1) == 1
    assert tokenizer("a", "b")["input_ids"].count(1) == 2
    pieces = tokenizer.convert_ids_to_tokens(tokenizer.encode("🦙", add_special_tokens=False))
    assert pieces == ["▁", "<0xF0>", "<0x9F>", "<0xA6>", "<0x99>"]
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>"]) == [0, 1, 2]


def test_special_tokens_of_llama_3_are_where_meta_has_them(llama_3: tuple[Any, Any]) -> None:
    old, new = special_tokens(new=False), special_tokens(new=True)
    assert len(old) == len(new) == len(set(old)) == len(set(new)) == 256
    assert (old[0], old[1], old[6], old[7], old[9]) == (
        "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    )  # fmt: skip
    assert (old[5], old[8], old[10], old[255]) == tuple(f"<|reserved_special_token_{n}|>" for n in (3, 4, 5, 250))
    assert (new[4], new[8], new[9], new[10]) == (
        "<|finetune_right_pad_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
    )
    assert (new[5], new[11], new[255]) == tuple(f"<|reserved_special_token_{n}|>" for n in (2, 3, 247))
    tokenizer, _ = llama_3
    assert (len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id) == (664, 408, 409)
    assert tokenizer.pad_token is None and tokenizer.unk_token is None
    assert tokenizer("hay<|eot_id|>")["input_ids"][0] == 408 and tokenizer("hay<|eot_id|>")["input_ids"][-1] == 417


def test_a_rank_file_is_told_from_a_sentencepiece_model(tiktoken_file: Path, sentencepiece_file: Path) -> None:
    assert is_tiktoken(tiktoken_file) and not is_tiktoken(sentencepiece_file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:100] + lines[101:], "without a gap"),
        (lambda lines: [*lines, "??? 408"], "line 409: expected a base64 token"),
        (lambda lines: [*lines, "YWJj"], "line 409"),
        (lambda lines: [f"{base64.b64encode(b'zzzz').decode()} 0", *lines[1:]], "1 of the 256 single bytes"),
    ],
)
def test_damaged_rank_files_are_refused(tiktoken_file: Path, tmp_path: Path, change: Any, message: str) -> None:
    broken = tmp_path / "tokenizer.model"
    broken.write_text("\n".join(change(tiktoken_file.read_text().splitlines())))
    with pytest.raises(ConversionError, match=message):
        read_ranks(broken)


def test_a_tokenizer_without_byte_fallback_is_refused(tmp_path: Path) -> None:
    pieces = [bpe.Piece("<unk>", 0.0, bpe.PieceKind.UNKNOWN), bpe.Piece("a", 0.0, bpe.PieceKind.NORMAL)]
    with pytest.raises(ConversionError, match="byte fallback"):
        bpe.tokenizer_from_pieces(pieces)


def test_a_tokenizer_that_behaves_otherwise_is_found_out(tmp_path: Path) -> None:
    """A unigram model cuts by probability: no list of merges does the same, so its conversion must be refused."""
    import sentencepiece

    text = tmp_path / "text.txt"
    text.write_text("the alpacas hum and eat grass and hay all day long in the field\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "tokenizer"), vocab_size=300, model_type="unigram",
        byte_fallback=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    model = SentencepieceModel(tmp_path / "tokenizer.model")
    with pytest.raises(ConversionError, match="the original as"):
        model.check(model.convert(FAMILIES["llama"], instruct=False))
