"""GGUF files become dense bases with the same weights, tokenizer and special ids."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from alpaca.convert.base_folder import convert
from alpaca.convert.bpe import PieceKind
from alpaca.convert.family import scaled_rope
from alpaca.convert.find import find_origin
from alpaca.convert.gguf_model import llama3_divisors, plain_name
from alpaca.convert.sentencepiece_model import SentencepieceModel
from alpaca.convert.tiktoken_model import _byte_level, read_ranks, special_tokens
from alpaca.errors import ConversionError
from alpaca.serving.loading import end_ids

Q = gguf.GGMLQuantizationType
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def tiny_model(vocab: int, *, tied: bool, rope: dict[str, Any] | None = None) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=tied,
        rope_parameters=rope or {"rope_type": "default", "rope_theta": 20_000.0}, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def llama_cpp_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """The row order that llama.cpp's own converter gives query and key projections."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


class Writer(gguf.GGUFWriter):
    """A GGUF file of a tiny model; tests change fields before `finish`."""

    def __init__(self, path: Path, model: LlamaForCausalLM, arch: str = "llama") -> None:
        super().__init__(path, arch)
        config = model.config
        self.add_context_length(config.max_position_embeddings)
        self.add_embedding_length(config.hidden_size)
        self.add_block_count(config.num_hidden_layers)
        self.add_feed_forward_length(config.intermediate_size)
        self.add_head_count(config.num_attention_heads)
        self.add_head_count_kv(config.num_key_value_heads)
        self.add_layer_norm_rms_eps(config.rms_norm_eps)
        self.add_rope_freq_base(config.rope_parameters["rope_theta"])
        self.add_rope_dimension_count(16)

    def add_model(self, model: LlamaForCausalLM, quantization: Q) -> LlamaForCausalLM:
        """Write the weights; returns a copy of the model with the weights as they can be read back."""
        config = model.config
        kept = copy.deepcopy(model)
        for name, parameter in kept.named_parameters():
            weight = parameter.detach().numpy()
            heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
            count = next((n for part, n in heads.items() if part in name), 0)
            kind = quantization if weight.ndim == 2 else Q.F32
            data = gguf.quantize(llama_cpp_order(weight, count) if count else weight, kind)
            self.add_tensor(gguf_name(name), data, raw_dtype=kind)
            read_back = gguf.dequantize(gguf.quantize(weight, kind), kind)
            parameter.data = torch.from_numpy(read_back).to(torch.bfloat16).float()
        kept.tie_weights()
        return kept

    def finish(self) -> None:
        self.write_header_to_file()
        self.write_kv_data_to_file()
        self.write_tensors_to_file()
        self.close()


def gguf_name(name: str) -> str:
    if name.startswith("model.layers."):
        _, _, layer, rest = name.split(".", 3)
        return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"
    return {
        "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }[name]  # fmt: skip


def add_byte_level_tokenizer(writer: Writer, ranks_file: Path, pre: str = "smollm") -> None:
    """SmolLM2-like: BOS 1, EOS 2 which is also named as padding, <|endoftext|> 0."""
    vocab, merges = _byte_level(read_ranks(ranks_file))
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*special, *vocab])
    writer.add_token_types([PieceKind.CONTROL] * 3 + [PieceKind.NORMAL] * len(vocab))
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}")


@pytest.mark.parametrize("quantization", [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_weights_and_logits_are_those_in_the_file(
    tmp_path: Path, tiktoken_file: Path, quantization: Q, tied: bool
) -> None:
    path = tmp_path / f"Tiny-Model-1M.{quantization.name}.gguf"
    model = tiny_model(411, tied=tied)
    writer = Writer(path, model)
    add_byte_level_tokenizer(writer, tiktoken_file)
    expected = writer.add_model(model, quantization)
    writer.finish()
    base = convert(find_origin(path, None), tmp_path / "weights")
    assert base.name == "tiny-model-1m"
    assert {tensor.dtype for tensor in load_file(base / "model.safetensors").values()} == {torch.bfloat16}
    found = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wanted = expected.state_dict()
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    tokens = torch.arange(3, 60)[None]
    with torch.no_grad():
        torch.testing.assert_close(found(tokens).logits, expected(tokens).logits, atol=1e-5, rtol=1e-5)
    config = AutoConfig.from_pretrained(base)
    assert (config.rms_norm_eps, config.rope_parameters["rope_theta"], config.num_key_value_heads) == (1e-5, 20000.0, 2)


def test_special_ids_digits_and_chat_template_of_a_smollm_file(tmp_path: Path, tiktoken_file: Path) -> None:
    model = tiny_model(411, tied=True)
    writer = Writer(tmp_path / "a.gguf", model)
    add_byte_level_tokenizer(writer, tiktoken_file)
    writer.add_model(model, Q.F32)
    writer.finish()
    tokenizer = AutoTokenizer.from_pretrained(convert(find_origin(tmp_path, None), tmp_path / "weights"))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert tokenizer.pad_token == "<|endoftext|>", "padding must never be the end of an answer"
    assert tokenizer.tokenize("in 2025")[-4:] == ["2", "0", "2", "5"]
    assert tokenizer("hay")["input_ids"][0] != 1
    assert tokenizer.apply_chat_template([{"content": "hum"}], tokenize=False) == "<|im_start|>hum<|im_end|>"


def test_llama_3_file_keeps_its_split_its_bos_and_its_rope_scaling(tmp_path: Path, tiktoken_file: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
    model = tiny_model(664, tied=False, rope=rope)
    vocab, merges = _byte_level(read_ranks(tiktoken_file))
    writer = Writer(tmp_path / "Meta-Llama-3.1-8B.Q8_0.gguf", model)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([*vocab, *special_tokens(new=True)])
    writer.add_token_types([PieceKind.NORMAL] * len(vocab) + [PieceKind.CONTROL] * 256)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(408)
    writer.add_eos_token_id(417)
    expected = writer.add_model(model, Q.F32)
    plain = rope["rope_theta"] ** -(torch.arange(0, 16, 2) / 16)
    writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq).numpy().astype(np.float32))
    writer.finish()
    base = convert(find_origin(tmp_path, None), tmp_path / "weights")
    assert base.name == "meta-llama-3.1-8b"
    assert AutoConfig.from_pretrained(base).rope_parameters == rope
    tokens = torch.randint(0, 664, (1, 400), generator=torch.Generator().manual_seed(1))
    found = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(found(tokens).logits, expected(tokens).logits, atol=1e-4, rtol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert tokenizer.pad_token == "<|finetune_right_pad_id|>"
    assert tokenizer("123456")["input_ids"][0] == 408
    import tiktoken

    original = tiktoken.Encoding(
        "tiny", pat_str=r"\p{N}{1,3}|[^\p{N}]+", mergeable_ranks=read_ranks(tiktoken_file), special_tokens={}
    )
    assert tokenizer.encode("123456", add_special_tokens=False) == original.encode_ordinary("123456")


def test_a_sentencepiece_tokenizer_inside_a_file(tmp_path: Path, sentencepiece_file: Path) -> None:
    original = SentencepieceModel(sentencepiece_file)
    pieces = original.pieces
    model = tiny_model(len(pieces), tied=False)
    writer = Writer(tmp_path / "llama-2-tiny.Q4_K_M.gguf", model)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([piece.text for piece in pieces])
    writer.add_token_scores([piece.score for piece in pieces])
    writer.add_token_types([piece.kind for piece in pieces])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_model(model, Q.F32)
    writer.finish()
    base = convert(find_origin(tmp_path, None), tmp_path / "weights")
    tokenizer = AutoTokenizer.from_pretrained(base)
    original.check(tokenizer)
    assert (base.name, tokenizer.unk_token_id, tokenizer.pad_token) == ("llama-2-tiny", 0, None)
    assert tokenizer("hay")["input_ids"][0] == 1


def overwrite(key: str, value: Any) -> Any:
    def change(writer: Writer, model: LlamaForCausalLM) -> None:
        writer.kv_data[0][key].value = value

    return change


def add_extra(writer: Writer, model: LlamaForCausalLM) -> None:
    writer.add_tensor("blk.0.attn_q.bias", np.zeros(64, dtype=np.float32))


def drop_layer(writer: Writer, model: LlamaForCausalLM) -> None:
    overwrite("llama.block_count", 3)(writer, model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (overwrite("tokenizer.ggml.pre", "qwen2"), "pre is qwen2"),
        (overwrite("tokenizer.ggml.pre", "default"), "pre is default"),
        (overwrite("tokenizer.ggml.model", "bert"), "tokenizer 'bert' is unknown"),
        (overwrite("general.architecture", "qwen2"), "'qwen2' model"),
        (overwrite("llama.attention.head_count_kv", 3), "impossible sizes"),
        (overwrite("llama.attention.head_count_kv", 4), "attn_k.weight has shape"),
        (overwrite("llama.rope.dimension_count", 8), "rotates 8 of 16"),
        (overwrite("tokenizer.ggml.eos_token_id", 9999), "eos_token_id 9999 is outside"),
        (overwrite("tokenizer.ggml.merges", ["a b c"]), "no pair"),
        (overwrite("tokenizer.ggml.token_type", [1, 1]), "2 token types"),
        (lambda writer, model: writer.add_expert_count(8), "8 experts"),
        (lambda writer, model: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN), "'yarn' rope scaling"),
        (lambda writer, model: writer.add_tensor("rope_freqs.weight", np.full(8, 3, np.float32)), "not Llama 3.1's"),
        (add_extra, "blk.0.attn_q.bias"),
        (drop_layer, "lacks 9 tensors: blk.2"),
    ],
)
def test_what_cannot_be_converted_rightly_is_refused(
    tmp_path: Path, tiktoken_file: Path, change: Any, message: str
) -> None:
    model = tiny_model(411, tied=True)
    writer = Writer(tmp_path / "a.gguf", model)
    add_byte_level_tokenizer(writer, tiktoken_file)
    writer.add_model(model, Q.F32)
    change(writer, model)
    writer.finish()
    with pytest.raises(ConversionError, match=message):
        convert(find_origin(tmp_path, None), tmp_path / "weights")
    assert not list(tmp_path.glob("weights/*"))


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-5000], lambda data: data[:3000], lambda data: b"GGML" + data[4:], lambda data: b""]
)
def test_damaged_files_are_refused(tmp_path: Path, tiktoken_file: Path, damage: Any) -> None:
    model = tiny_model(411, tied=True)
    writer = Writer(tmp_path / "a.gguf", model)
    add_byte_level_tokenizer(writer, tiktoken_file)
    writer.add_model(model, Q.F32)
    writer.finish()
    (tmp_path / "a.gguf").write_bytes(damage((tmp_path / "a.gguf").read_bytes()))
    with pytest.raises(ConversionError, match="damaged or cut off"):
        find_origin(tmp_path, None)


def test_names_without_the_quantization() -> None:
    assert plain_name("SmolLM2-135M-Instruct.Q4_1") == "smollm2-135m-instruct"
    assert plain_name("Meta-Llama-3-8B-Instruct-Q4_K_M") == "meta-llama-3-8b-instruct"
    assert plain_name("tinyllama-1.1b-chat-v1.0.IQ4_XS") == "tinyllama-1.1b-chat-v1.0"
    assert plain_name("model-bf16") == "model"


@pytest.mark.real
def test_the_real_base_answers_sensibly_with_the_right_ids(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert len(tokenizer) == 49152
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
    )
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    assert tokenizer.tokenize("in 2025") == ["in", "Ġ", "2", "0", "2", "5"]
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert prompt["input_ids"][0, :3].tolist() == [1, 9690, 198]
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    answer = model.generate(**prompt, max_new_tokens=30, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == 2, "the answer ends by itself"
    assert AutoConfig.from_pretrained(smollm2).rms_norm_eps == 1e-5
    assert isinstance(tokenizer.backend_tokenizer, Tokenizer) and isinstance(
        tokenizer.backend_tokenizer.model, tokenizer_models.BPE
    )


# --- what ends an answer, and other readers of the base -------------------------------------------------------------
@pytest.mark.parametrize(
    ("named", "ends"),
    [
        ({}, 2),
        ({"eot": 1}, [2, 1]),
        ({"eot": 1, "eom": 0}, [2, 1, 0]),
        ({"eot": 2}, 2),
    ],
    ids=["none", "the turn", "turn and message", "the turn is EOS"],
)
def test_what_the_file_names_as_an_end_ends_answers(
    tmp_path: Path, tiktoken_file: Path, named: dict[str, int], ends: int | list[int]
) -> None:
    """In base releases EOS ends the text, and another token the turn."""
    path = tmp_path / "m.gguf"
    model = tiny_model(411, tied=True)
    writer = Writer(path, model)
    add_byte_level_tokenizer(writer, tiktoken_file)
    for name, token in named.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token)
    writer.add_model(model, Q.F16)
    writer.finish()
    origin = find_origin(path, None)
    base = convert(origin, tmp_path / "weights")
    assert GenerationConfig.from_pretrained(base).eos_token_id == ends
    assert AutoTokenizer.from_pretrained(base).eos_token_id == 2
    assert any("answers end at <|im_start|> (1)" in note for note in origin.notes) == (named.get("eot") == 1)
    served = end_ids(AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base))
    assert served == (tuple(ends) if isinstance(ends, list) else (ends,))


def test_a_turn_end_outside_the_vocabulary_is_refused(tmp_path: Path, tiktoken_file: Path) -> None:
    path = tmp_path / "m.gguf"
    model = tiny_model(411, tied=True)
    writer = Writer(path, model)
    add_byte_level_tokenizer(writer, tiktoken_file)
    writer.add_uint32("tokenizer.ggml.eot_token_id", 411)
    writer.add_model(model, Q.F16)
    writer.finish()
    with pytest.raises(ConversionError, match="eot_token_id 411 is outside the 411 tokens"):
        find_origin(path, None)


@pytest.mark.parametrize("scaled", [False, True], ids=["plain rope", "scaled rope"])
def test_the_base_is_right_for_transformers_4_too(tmp_path: Path, tiktoken_file: Path, scaled: bool) -> None:
    """It reads rope_theta and rope_scaling, overlooks rope_parameters, and knows no class called TokenizersBackend."""
    path = tmp_path / "m.gguf"
    rope = scaled_rope(20_000.0, 8.0) if scaled else None
    model = tiny_model(411, tied=True, rope=rope)
    writer = Writer(path, model)
    add_byte_level_tokenizer(writer, tiktoken_file)
    writer.add_model(model, Q.F16)
    if rope is not None:
        writer.add_tensor("rope_freqs.weight", llama3_divisors(rope, 16).astype(np.float32))
    writer.finish()
    base = convert(find_origin(path, None), tmp_path / "weights")
    config = json.loads((base / "config.json").read_text())
    assert config["rope_theta"] == 20_000.0
    assert (config["rope_scaling"] or {}).get("factor") == (8.0 if scaled else None)
    now = AutoConfig.from_pretrained(base).rope_parameters
    (base / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "rope_parameters"}))
    assert (
        AutoConfig.from_pretrained(base).rope_parameters
        == now
        == (rope or {"rope_type": "default"}) | {"rope_theta": 20_000.0}
    )
    assert json.loads((base / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
