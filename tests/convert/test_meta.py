"""Meta checkpoints become bases that compute what Meta's own forward pass computes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from meta_model import LLAMA_1, LLAMA_3, forward, logits_of, random_weights, write_checkpoint
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from alpaca.convert.base_folder import convert
from alpaca.convert.family import FAMILIES, base_name, detect_family
from alpaca.convert.find import find_origin
from alpaca.convert.params import Params
from alpaca.errors import ConversionError

TOKENS = torch.arange(5, 45)


def put(
    folder: Path, tokenizer: Path, params: dict[str, Any], *, n_shards: int = 1, tied: bool = False,
    doubled_head: bool = False, dtype: torch.dtype = torch.float32, name: str = "7B",
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Write a checkpoint and its tokenizer; returns the whole weights."""
    llama_3 = "rope_theta" in params
    weights = random_weights(params, 664 if llama_3 else 500, tied=tied or doubled_head)
    stored = weights | {"output.weight": weights["tok_embeddings.weight"]} if doubled_head else weights
    write_checkpoint(folder / name, params, stored, n_shards=n_shards, cut_vocabulary=llama_3, dtype=dtype)
    shutil.copy(tokenizer, folder / "tokenizer.model")
    return weights


def assert_same_logits(base: Path, params: dict[str, Any], weights: dict[str, torch.Tensor], **kwargs: float) -> None:
    torch.testing.assert_close(
        logits_of(base, TOKENS), forward(params, weights, TOKENS, **kwargs), atol=2e-4, rtol=1e-4
    )


@pytest.mark.parametrize("n_shards", [1, 2, 4])
def test_llama_1_logits_are_equal_whatever_the_number_of_shards(
    tmp_path: Path, sentencepiece_file: Path, n_shards: int
) -> None:
    weights = put(tmp_path, sentencepiece_file, LLAMA_1, n_shards=n_shards)
    base = convert(find_origin(tmp_path, "7B"), tmp_path / "weights")
    assert base == tmp_path / "weights" / "llama-7b"
    assert_same_logits(base, LLAMA_1, weights)


@pytest.mark.parametrize("n_shards", [1, 2, 4])
def test_grouped_query_attention_and_a_cut_vocabulary(tmp_path: Path, tiktoken_file: Path, n_shards: int) -> None:
    weights = put(tmp_path, tiktoken_file, LLAMA_3 | {"vocab_size": 664}, n_shards=n_shards, name="8B")
    base = convert(find_origin(tmp_path, "8B"), tmp_path / "weights")
    assert base.name == "llama-3-8b"
    config = AutoConfig.from_pretrained(base)
    assert (config.num_key_value_heads, config.max_position_embeddings, config.tie_word_embeddings) == (4, 8192, False)
    assert_same_logits(base, LLAMA_3, weights)


def test_llama_2_with_grouped_query_attention_cuts_the_embedding_across_its_width(
    tmp_path: Path, sentencepiece_file: Path
) -> None:
    params = LLAMA_1 | {"n_kv_heads": 2, "ffn_dim_multiplier": 1.3, "norm_eps": 1e-5}
    weights = put(tmp_path, sentencepiece_file, params, n_shards=2, name="llama-2-70b")
    base = convert(find_origin(tmp_path, "llama-2-70b"), tmp_path / "weights")
    assert base.name == "llama-2-70b"
    assert AutoConfig.from_pretrained(base).max_position_embeddings == 4096
    assert_same_logits(base, params, weights)


@pytest.mark.parametrize("doubled_head", [False, True], ids=["head absent", "head stored twice"])
@pytest.mark.parametrize("n_shards", [1, 2])
def test_tied_head_of_llama_3_2(tmp_path: Path, tiktoken_file: Path, n_shards: int, doubled_head: bool) -> None:
    params = LLAMA_3 | {"use_scaled_rope": True}
    weights = put(tmp_path, tiktoken_file, params, n_shards=n_shards, tied=True, doubled_head=doubled_head, name="1B")
    base = convert(find_origin(tmp_path, "1B"), tmp_path / "weights")
    assert base.name == "llama-3.2-1b"
    assert "lm_head.weight" not in load_file(base / "model.safetensors")
    config = AutoConfig.from_pretrained(base)
    assert config.tie_word_embeddings and config.rope_parameters["factor"] == 32.0
    assert_same_logits(base, params, weights, factor=32.0)


@pytest.mark.parametrize(("stated", "factor"), [({}, 8.0), ({"rope_scaling_factor": 16.0}, 16.0)])
def test_scaled_rope_far_into_the_text(
    tmp_path: Path, tiktoken_file: Path, stated: dict[str, float], factor: float
) -> None:
    params = LLAMA_3 | {"use_scaled_rope": True} | stated
    weights = put(tmp_path, tiktoken_file, params, name="8B")
    base = convert(find_origin(tmp_path, "8B"), tmp_path / "weights")
    assert base.name == "llama-3.1-8b"
    tokens = torch.randint(0, 664, (1500,), generator=torch.Generator().manual_seed(3))
    found = logits_of(base, tokens)
    torch.testing.assert_close(found, forward(params, weights, tokens, factor=factor), atol=1e-3, rtol=1e-3)
    unscaled = forward(LLAMA_3, weights, tokens)
    assert (found - unscaled)[-100:].abs().max() > 0.05, "the scaling would not show in this test"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_keep_the_stored_dtype_bit_by_bit(tmp_path: Path, sentencepiece_file: Path, dtype: torch.dtype) -> None:
    weights = put(tmp_path, sentencepiece_file, LLAMA_1, n_shards=2, dtype=dtype)
    base = convert(find_origin(tmp_path, "7B"), tmp_path / "weights")
    found = load_file(base / "model.safetensors")
    assert AutoConfig.from_pretrained(base).dtype == dtype
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    for ours, theirs in (("mlp.down_proj", "feed_forward.w2"), ("self_attn.o_proj", "attention.wo")):
        assert torch.equal(found[f"model.layers.1.{ours}.weight"], weights[f"layers.1.{theirs}.weight"].to(dtype))


def test_many_output_shards_with_an_index(tmp_path: Path, sentencepiece_file: Path) -> None:
    weights = put(tmp_path, sentencepiece_file, LLAMA_1, n_shards=2)
    base = convert(find_origin(tmp_path, "7B"), tmp_path / "weights", max_shard_bytes=100_000)
    shards = sorted(base.glob("*.safetensors"))
    assert len(shards) > 3 and all(shard.stat().st_size < 160_000 for shard in shards)
    index = json.loads((base / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}
    assert index["metadata"]["total_size"] == sum(t.nbytes for shard in shards for t in load_file(shard).values())
    assert_same_logits(base, LLAMA_1, weights)


def test_tokenizer_is_in_the_base_and_beside_it(tmp_path: Path, llama_input: Path) -> None:
    base = convert(find_origin(llama_input, "7B"), tmp_path / "weights")
    for folder in (base, tmp_path / "weights" / "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
        assert tokenizer("The alpaca")["input_ids"][0] == 1
        assert tokenizer.pad_token is None and tokenizer.chat_template is None


def test_instruct_gives_the_end_of_turn_token_and_a_chat_template(tmp_path: Path, tiktoken_file: Path) -> None:
    put(tmp_path, tiktoken_file, LLAMA_3 | {"use_scaled_rope": True}, name="8B")
    base = convert(find_origin(tmp_path, "8B", instruct=True), tmp_path / "weights")
    assert base.name == "llama-3.1-8b-instruct"
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|eot_id|>", "<|finetune_right_pad_id|>")
    assert GenerationConfig.from_pretrained(base).eos_token_id == [409, 416, 417]
    messages = [{"role": "user", "content": " Hello "}]
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_llama_2_chat_template_wraps_every_exchange(tmp_path: Path, sentencepiece_file: Path) -> None:
    put(tmp_path, sentencepiece_file, LLAMA_1 | {"norm_eps": 1e-5}, name="llama-2-7b-chat")
    base = convert(find_origin(tmp_path, "llama-2-7b-chat", instruct=True), tmp_path / "weights")
    messages = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Bye"},
    ]  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert tokenizer.apply_chat_template(messages, tokenize=False) == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello. </s><s>[INST] Bye [/INST]"
    )
    ids = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert ids.count(1) == 2 and ids.count(2) == 1


@pytest.mark.parametrize(
    ("params", "tokenizer", "tied", "folder", "expected"),
    [
        (Params(4096, 32, 32, 1e-6), "sentencepiece", False, "7B", "llama"),
        (Params(8192, 80, 64, 1e-5), "sentencepiece", False, "65B", "llama"),
        (Params(4096, 32, 32, 1e-5), "sentencepiece", False, "7B", "llama-2"),
        (Params(4096, 32, 32, 1e-6), "sentencepiece", False, "llama-2-7b-chat", "llama-2"),
        (Params(8192, 80, 64, 1e-5, n_kv_heads=8), "sentencepiece", False, "70B", "llama-2"),
        (Params(4096, 32, 32, 1e-5, rope_theta=1e6), "sentencepiece", False, "7B", "codellama"),
        (Params(4096, 32, 32, 1e-5, rope_theta=5e5), "tiktoken", False, "8B", "llama-3"),
        (Params(4096, 32, 32, 1e-5, rope_theta=5e5, use_scaled_rope=True), "tiktoken", False, "8B", "llama-3.1"),
        (Params(2048, 16, 32, 1e-5, rope_theta=5e5, use_scaled_rope=True), "tiktoken", True, "1B", "llama-3.2"),
    ],
)
def test_family_is_recognised(params: Params, tokenizer: str, tied: bool, folder: str, expected: str) -> None:
    assert detect_family(params, tokenizer, tied=tied, folder_name=folder)[0].name == expected


def test_names_of_bases() -> None:
    assert base_name("7B", FAMILIES["llama"], instruct=False) == "llama-7b"
    assert base_name("13B-chat", FAMILIES["llama-2"], instruct=True) == "llama-2-13b-chat"
    assert base_name("Meta-Llama-3-8B-Instruct", FAMILIES["llama-3"], instruct=True) == "meta-llama-3-8b-instruct"


def test_feed_forward_widths_of_the_releases() -> None:
    assert Params(4096, 32, 32, 1e-6).hidden == 11008
    assert Params(8192, 80, 64, 1e-5, n_kv_heads=8, multiple_of=4096, ffn_dim_multiplier=1.3).hidden == 28672
    assert Params(4096, 32, 32, 1e-5, n_kv_heads=8, multiple_of=1024, ffn_dim_multiplier=1.3).hidden == 14336
    assert Params(2048, 16, 32, 1e-5, n_kv_heads=8, multiple_of=256, ffn_dim_multiplier=1.5).hidden == 8192


def test_family_by_hand_must_fit_the_tokenizer(llama_input: Path) -> None:
    assert find_origin(llama_input, "7B", family="llama-2").name == "llama-2-7b"
    with pytest.raises(ConversionError, match=r"tiktoken tokenizer, but tokenizer\.model is sentencepiece"):
        find_origin(llama_input, "7B", family="llama-3")
    with pytest.raises(ConversionError, match="LLaMA 1 has no instruct"):
        find_origin(llama_input, "7B", instruct=True)
