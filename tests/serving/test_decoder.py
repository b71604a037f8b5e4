"""The decoder computes what transformers' own forward pass does, for every base and in every precision."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from alpaca.adapter.folder import load_tensors, verify_files
from alpaca.base.load import load_model
from alpaca.errors import BadAdapter, BadBase
from alpaca.serving.attention import Attended, Row, prefill, spans
from alpaca.serving.cache import CachePlan, KeyValueCache
from alpaca.serving.decoder import Decoder, Step, check_family, longest_context
from alpaca.serving.loading import load_base, open_engine
from alpaca.serving.lora import LoraStack, Place, mix
from alpaca.serving.slots import in_blocks
from tests.conftest import make_base, make_tokenizer
from tests.serving.peft_adapters import EVERY_KIND, HEAD, make_adapter

SHAPE: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2,
}  # fmt: skip
ROPE = {"rope_theta": 10000.0}
FP32 = 2e-5  # measured: 1e-6 to 4e-6; see distance()
FAMILY: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SHAPE),
    "llama, tied": lambda: LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "llama, wide heads and biases": lambda: LlamaConfig(**SHAPE, head_dim=24, attention_bias=True, mlp_bias=True),
    "llama, multi-head": lambda: LlamaConfig(**{**SHAPE, "num_key_value_heads": 4}),
    "llama, one key head": lambda: LlamaConfig(**{**SHAPE, "num_key_value_heads": 1}),
    "mistral": lambda: MistralConfig(**SHAPE, sliding_window=None),
    "mistral, sliding window": lambda: MistralConfig(**SHAPE, sliding_window=100),
    "qwen2": lambda: Qwen2Config(**SHAPE),
    "qwen2, sliding window": lambda: Qwen2Config(
        **SHAPE, use_sliding_window=True, sliding_window=100, max_window_layers=1
    ),
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=32),
    "rope linear": lambda: LlamaConfig(**SHAPE, rope_parameters={**ROPE, "rope_type": "linear", "factor": 4.0}),
    "rope llama3": lambda: LlamaConfig(
        **SHAPE,
        rope_parameters={
            **ROPE, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "rope yarn": lambda: LlamaConfig(
        **SHAPE,
        rope_parameters={**ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    ),
}  # fmt: skip


def random_model(config: PretrainedConfig, seed: int = 0) -> Any:
    """A base with random weights; biases and norms, which begin as zeros and ones, are random as well."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


class Bench:
    """A decoder with a cache of four slots, fed by hand."""

    def __init__(self, model: Any, context: int, columns: int = 48) -> None:
        self.decoder = Decoder(model, columns, context)
        self.size = in_blocks(context)
        plan = CachePlan(4 * self.size, context, 4, 0, "")
        self.cache = KeyValueCache(model.config, plan, self.decoder.dtype, self.decoder.device)
        self.stack = LoraStack(self.decoder.projections, columns)
        self.done = [0] * 4

    def step(self, parts: list[tuple[int, list[int], Place | None, float]], padding: int = 0) -> list[Tensor]:
        """Logits after every token of each part: (slot, tokens, adapter, scale); parts of one token come first."""
        decoder, cpu = self.decoder, torch.device("cpu")
        size = self.size
        single = [Row(slot * size, size, self.done[slot] + 1) for slot, tokens, _, _ in parts if len(tokens) == 1]
        found: list[Attended] = [*spans(single, cpu)]
        row = len(single)
        for slot, tokens, _, _ in parts[len(single) :]:
            group = decoder.heads // decoder.kv_heads
            found.append(prefill(row, len(tokens), slot * size, self.done[slot], group, cpu))
            row += len(tokens)
        ids = [token for _, tokens, _, _ in parts for token in tokens]
        positions = [self.done[slot] + n for slot, tokens, _, _ in parts for n in range(len(tokens))]
        users = [([(place, scale)] if place else [], len(tokens)) for _, tokens, place, scale in parts]
        with torch.inference_mode():
            logits = decoder.forward(
                Step(
                    torch.tensor(ids + [0] * padding),
                    torch.tensor(positions + [0] * padding),
                    torch.tensor(
                        [slot * size + self.done[slot] + n for slot, tokens, _, _ in parts for n in range(len(tokens))]
                    ),
                    found,
                    torch.arange(len(ids)),
                    mix([*users, ([], padding)], decoder.members, decoder.dtype, cpu),
                    mix(users, {1}, decoder.dtype, cpu) if decoder.head_projection else None,
                ),
                self.cache,
            )
        for slot, tokens, _, _ in parts:
            self.done[slot] += len(tokens)
        return list(logits.split([len(tokens) for _, tokens, _, _ in parts]))

    def read(self, ids: list[int], place: Place | None = None, scale: float = 1.0, slot: int = 0) -> Tensor:
        """Logits after every token: the prompt in two chunks, then token by token."""
        half, rest = len(ids) // 2, len(ids) - 6
        pieces = [ids[:half], ids[half:rest], *([token] for token in ids[rest:])]
        return torch.cat([self.step([(slot, piece, place, scale)])[0] for piece in pieces])

    def put(self, base: Path, folder: Path) -> Place:
        files = verify_files(folder, base)
        assert self.stack.put({str(folder): self.stack.prepare(files.spec, files.modules, load_tensors(files))})
        place = self.stack.find(str(folder))
        assert place is not None
        return place


def tokens(count: int, seed: int = 0, vocabulary: int = 300) -> list[int]:
    found: list[int] = torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return found


def own_forward(model: Any, ids: list[int]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([ids])).logits[0].float()
    return logits


def distance(found: Tensor, wanted: Tensor) -> float:
    """How far logits are from others: root mean square of the difference, as a share of the spread of the second."""
    return float((found - wanted).square().mean().sqrt() / wanted.std())


# --- the family, in fp32 ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", list(FAMILY))
def test_logits_are_those_of_the_models_own_forward_pass(kind: str) -> None:
    model = random_model(FAMILY[kind]())
    context = longest_context(model.config)
    assert context == (100 if "sliding" in kind else 256)
    ids = tokens(context)
    wanted = own_forward(model, ids)
    bench = Bench(model, context)
    assert distance(bench.read(ids), wanted) < FP32
    # and with neighbours of other lengths in the same step, padded
    others = {slot: tokens(20 * slot, seed=slot) for slot in (1, 2, 3)}
    bench.done[0] = 0
    bench.step([(slot, ids, None, 1.0) for slot, ids in others.items()], padding=5)
    bench.step([(0, ids[:50], None, 1.0)])
    single = bench.step([(0, ids[50:51], None, 1.0), *((slot, ids[slot : slot + 1], None, 1.0) for slot in others)])
    assert distance(single[0], wanted[50:51]) < FP32
    for slot, before in others.items():
        assert distance(single[slot], own_forward(model, [*before, ids[slot]])[-1:]) < FP32


def test_slots_apart_and_of_very_different_lengths_are_attended_to_apart() -> None:
    model = random_model(LlamaConfig(**{**SHAPE, "max_position_embeddings": 1024}))
    lengths = {0: 900, 1: 10, 3: 30}
    ids = {slot: tokens(length, seed=slot) for slot, length in lengths.items()}
    wanted = {slot: own_forward(model, [*ids[slot], 5])[-1:] for slot in lengths}
    bench = Bench(model, 1024)
    for slot in lengths:
        bench.step([(slot, ids[slot], None, 1.0)])
    found = bench.step([(slot, [5], None, 1.0) for slot in lengths])
    for slot, logits in zip(lengths, found, strict=True):
        assert distance(logits, wanted[slot]) < FP32


def test_the_model_itself_computes_as_before() -> None:
    model = random_model(FAMILY["qwen2"]())
    wanted = own_forward(model, tokens(50))
    Bench(model, 256)
    assert torch.equal(own_forward(model, tokens(50)), wanted)
    Bench(model, 128, columns=16)  # a second engine, later
    assert torch.equal(own_forward(model, tokens(50)), wanted)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (functools.partial(GemmaConfig, **SHAPE), "gemma"),
        (
            functools.partial(LlamaConfig, **SHAPE, rope_parameters={**ROPE, "rope_type": "dynamic", "factor": 2.0}),
            "'dynamic'",
        ),
        (
            functools.partial(
                LlamaConfig,
                **SHAPE,
                rope_parameters={
                    **ROPE, "rope_type": "longrope", "factor": 2.0, "original_max_position_embeddings": 64,
                    "short_factor": [1.0] * 8, "long_factor": [2.0] * 8,
                },
            ),
            "'longrope'",
        ),
        (functools.partial(LlamaConfig, **SHAPE, hidden_act="gelu"), "gelu"),
    ],
    ids=["gemma", "dynamic", "longrope", "gelu"],
)  # fmt: skip
def test_a_base_outside_of_the_family_is_refused(config: Callable[[], Any], says: str) -> None:
    with pytest.raises(BadBase, match=f"E3003.*{says}.*serves"):
        check_family(config())


def test_a_folder_with_a_base_outside_of_the_family_is_refused_when_the_engine_opens(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    config = GemmaConfig(
        **{**SHAPE, "vocab_size": len(tokenizer), "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 3}
    )
    random_model(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(BadBase, match="gemma"):
        open_engine(load_base(str(tmp_path), "fp32", say=lambda line: None), say=lambda line: None)


# --- adapters and precisions --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / "untied", tied=False, kv_heads=2, layers=3)


@pytest.fixture(scope="module")
def adapters(untied: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    kinds = {**EVERY_KIND, "head": HEAD}
    return {
        name: make_adapter(untied, folder / name, seed=n, spread=0.1, **lora)
        for n, (name, lora) in enumerate(kinds.items())
    }


# How far the engine may be from transformers and PEFT in the same precision; see distance(). Measured: fp32 3e-6, bf16
# 0.018 to 0.063, int8 0.038 to 0.079, nf4 0.019 to 0.056. For scale: in these precisions transformers itself is as far
# from fp32 as the engine is (0.03 to 0.09, 0.06 to 0.12, 0.55 to 0.71), and the adapters make 0.17 to 1.3.
TOLERANCE = {"fp32": FP32, "bf16": 0.1, "int8": 0.12, "nf4": 0.1}


@pytest.mark.parametrize("precision", list(TOLERANCE))
def test_adapters_mixed_in_one_step_give_the_logits_of_peft(
    untied: Path, adapters: dict[str, Path], precision: str
) -> None:
    from peft import PeftModel

    names = ["none", *(name for name in adapters if name != "dora" or precision in ("fp32", "bf16"))]
    ids = {name: tokens(40 + 3 * n, seed=n, vocabulary=256) for n, name in enumerate(names)}
    wanted = {}
    for name in names:
        model: Any = load_model(untied, precision)
        if name != "none":
            model = PeftModel.from_pretrained(model, str(adapters[name])).eval()
        wanted[name] = own_forward(model, ids[name])
    bench = Bench(load_model(untied, precision), 256, columns=112)
    places = {name: bench.put(untied, adapters[name]) if name != "none" else None for name in names}
    for first in range(0, len(names), 4):  # four slots
        group = names[first : first + 4]
        bench.done = [0] * 4
        prompts = bench.step([(slot, ids[name][:-1], places[name], 1.0) for slot, name in enumerate(group)], padding=3)
        singles = bench.step([(slot, ids[name][-1:], places[name], 1.0) for slot, name in enumerate(group)])
        for name, prompt, single in zip(group, prompts, singles, strict=True):
            assert distance(torch.cat((prompt, single)), wanted[name]) < TOLERANCE[precision], name


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_a_dora_adapter_on_a_quantised_base_is_refused_with_a_reason(
    untied: Path, adapters: dict[str, Path], precision: str
) -> None:
    bench = Bench(load_model(untied, precision), 64)
    with pytest.raises(BadAdapter, match="DoRA adapter needs a base in bf16 or fp32"):
        bench.put(untied, adapters["dora"])
    assert len(bench.stack) == 0


def test_the_strength_of_an_adapter_scales_what_it_adds(untied: Path, adapters: dict[str, Path]) -> None:
    from peft import PeftModel

    ids = tokens(30, vocabulary=256)
    wanted = {}
    for scale in (0.0, 0.5, 4.0):
        model: Any = PeftModel.from_pretrained(load_model(untied, "fp32"), str(adapters["patterns"])).eval()
        for module in model.modules():
            if hasattr(module, "lora_A"):
                module.scaling["default"] *= scale
        wanted[scale] = own_forward(model, ids)
    bench = Bench(load_model(untied, "fp32"), 64)
    place = bench.put(untied, adapters["patterns"])
    for slot, (scale, logits) in enumerate(wanted.items()):
        assert distance(bench.read(ids, place, scale, slot), logits) < FP32


def test_a_base_with_biases_takes_adapters(tmp_path: Path) -> None:
    from peft import PeftModel

    config = FAMILY["qwen2"]()
    random_model(config).save_pretrained(tmp_path / "base")
    folder = make_adapter(tmp_path / "base", tmp_path / "a", target_modules=["q_proj", "k_proj", "o_proj", "up_proj"])
    ids = tokens(40)
    wanted = own_forward(PeftModel.from_pretrained(load_model(tmp_path / "base", "fp32"), str(folder)).eval(), ids)
    bench = Bench(load_model(tmp_path / "base", "fp32"), 64)
    assert distance(bench.read(ids, bench.put(tmp_path / "base", folder)), wanted) < FP32


def test_a_step_without_a_question_gives_no_logits() -> None:
    model = random_model(FAMILY["llama"]())
    bench = Bench(model, 64)
    step = Step(
        torch.tensor([5, 6]), torch.tensor([0, 1]), torch.tensor([0, 1]),
        [prefill(0, 2, 0, 0, 2, torch.device("cpu"))], torch.tensor([], dtype=torch.long),
    )  # fmt: skip
    assert bench.decoder.forward(step, bench.cache).shape == (0, 300)
    wanted = replace(step, wanted=torch.tensor([1]))
    assert distance(bench.decoder.forward(wanted, bench.cache), own_forward(model, [5, 6])[-1:]) < FP32
