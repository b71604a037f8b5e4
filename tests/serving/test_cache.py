"""How much memory keys, values and adapters get: the arithmetic, what is cut, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from alpaca.errors import BadSetting, NoRoom
from alpaca.serving.cache import SHARE, CachePlan, KeyValueCache, plan_cache
from alpaca.serving.decoder import Decoder
from alpaca.serving.limits import COLUMNS, EngineLimits, bytes_per_column, plan_columns
from alpaca.serving.loading import load_base, open_engine

CPU = torch.device("cpu")
CONFIG = LlamaConfig(
    vocab_size=100, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=24,
)  # fmt: skip
PER_TOKEN = 2 * 3 * 2 * 24 * 2  # key and value, layers, heads, head_dim, bytes in bf16


def plan(free: float, slots: int = 8, context: int = 4096, dtype: torch.dtype = torch.bfloat16) -> CachePlan:
    """`free`: in tokens that fit into the share of it."""
    budget = int(free * PER_TOKEN / SHARE["cpu"]) + 1
    return plan_cache(CONFIG, dtype, slots=slots, context=context, free=budget, device=CPU)


def test_a_token_takes_a_key_and_a_value_in_every_layer() -> None:
    found = plan(1e6)
    assert (found.slots, found.context, found.bytes_per_token) == (8, 4096, PER_TOKEN)
    assert plan(1e6, dtype=torch.float32).bytes_per_token == 2 * PER_TOKEN
    assert "8 slots × 4,096 tokens × 0.6 KiB = 0.02 GB" in found.reason and "would not fit" not in found.reason


def test_the_memory_is_what_the_plan_says() -> None:
    cache = KeyValueCache(CONFIG, plan(1e6, context=128), torch.bfloat16, CPU)
    held = sum(memory.nbytes for memory in (*cache.keys, *cache.values))
    assert held == 8 * 128 * PER_TOKEN
    assert not any(memory.any() for memory in (*cache.keys, *cache.values))


@pytest.mark.parametrize(
    ("tokens", "slots", "context"),
    [
        (8 * 4096, 8, 4096),
        (8 * 4096 - 1, 8, 4032),  # contexts are shortened first, in steps of 64 …
        (8 * 1024, 8, 1024),
        (8 * 1024 - 1, 7, 1024),  # … down to 1,024, then slots are given up
        (1024, 1, 1024),
    ],
)
def test_contexts_are_shortened_before_slots_are_given_up(tokens: int, slots: int, context: int) -> None:
    found = plan(tokens)
    assert (found.slots, found.context) == (slots, context)
    assert ("8 × 4,096 would not fit" in found.reason) == ((slots, context) != (8, 4096))


def test_a_short_context_is_never_made_longer() -> None:
    found = plan(250, slots=8, context=100)
    assert found.context <= 100
    assert found.slots * found.context <= 250


def test_too_little_for_one_slot_is_refused_with_what_to_do() -> None:
    with pytest.raises(NoRoom, match=r"E1104.*1,024 tokens.*PRECISION=nf4.*MAX_CONTEXT"):
        plan(1023)


def test_a_copy_holds_the_beginning_and_nothing_else() -> None:
    cache = KeyValueCache(CONFIG, plan(1e6, context=16), torch.float32, CPU)
    for memory in (*cache.keys, *cache.values):
        memory.normal_()
    before = [memory.clone() for memory in (*cache.keys, *cache.values)]
    cache.copy(2, 5, 7)
    for memory, old in zip((*cache.keys, *cache.values), before, strict=True):
        assert torch.equal(memory[5, :, :7], old[2, :, :7])
        memory[5, :, :7] = old[5, :, :7]
        assert torch.equal(memory, old)


def test_writing_reaches_the_slots_and_positions_named() -> None:
    cache = KeyValueCache(CONFIG, plan(1e6, context=16), torch.float32, CPU)
    keys, values = torch.randn(3, 2, 24), torch.randn(3, 2, 24)
    cache.write(1, torch.tensor([0, 4, 4]), torch.tensor([9, 2, 3]), keys, values)
    for row, (slot, position) in enumerate([(0, 9), (4, 2), (4, 3)]):
        assert torch.equal(cache.keys[1][slot, :, position], keys[row])
        assert torch.equal(cache.values[1][slot, :, position], values[row])
    assert not cache.keys[0].any() and cache.keys[1].count_nonzero() == keys.count_nonzero()


# --- room for adapters --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_column_takes_what_the_decoder_sets_aside_for_it(dtype: torch.dtype) -> None:
    config = LlamaConfig(**{**CONFIG.to_dict(), "tie_word_embeddings": True})
    decoder = Decoder(LlamaForCausalLM(config).to(dtype), columns=32, context=64)
    projections = {id(projection): projection for projection, _ in decoder.projections.values()}.values()
    held = sum(projection.down.nbytes + sum(up.nbytes for up in projection.ups.values()) for projection in projections)
    assert held == 32 * bytes_per_column(config, dtype, CPU)


@pytest.mark.parametrize(
    ("wanted", "free", "columns"),
    [(None, 10**12, COLUMNS), (None, 0, 16), (48, 0, 48), (50, 10**12, 48), (16, 10**12, 16)],
)
def test_columns_are_a_multiple_of_a_page_and_at_least_one(wanted: int | None, free: int, columns: int) -> None:
    assert plan_columns(CONFIG, torch.bfloat16, wanted, free, CPU) == columns


def test_columns_take_a_tenth_of_the_free_memory_at_most() -> None:
    per_column = bytes_per_column(CONFIG, torch.bfloat16, CPU)
    assert plan_columns(CONFIG, torch.bfloat16, None, per_column * 1000, CPU) == 96


# --- what the operator sets ---------------------------------------------------------------------------------------
NAMES = ("MAX_CONCURRENCY", "MAX_CONTEXT", "MAX_LORA_COLUMNS", "ADAPTER_FOLDERS", "SEPARATE_REQUESTS")


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_without_settings_the_defaults_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    assert EngineLimits.from_environment(Path("/mine")) == EngineLimits(
        roots=(Path("/mine/adapters"), Path("/mine/lora-*"))
    )
    for name in NAMES:
        monkeypatch.setenv(name, " " if name != "ADAPTER_FOLDERS" else "")
    assert EngineLimits.from_environment(Path("/mine")) == EngineLimits()


def test_settings_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(NAMES, ("3", "2048", " 64 ", "/a:/b c:", "1"), strict=True):
        monkeypatch.setenv(name, value)
    assert EngineLimits.from_environment(Path("/mine")) == EngineLimits(3, 2048, 64, (Path("/a"), Path("/b c")), True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_CONCURRENCY", "0"), ("MAX_CONCURRENCY", "257"), ("MAX_CONCURRENCY", "-1"), ("MAX_CONCURRENCY", "8.0"),
        ("MAX_CONCURRENCY", "eight"), ("MAX_CONTEXT", "15"), ("MAX_CONTEXT", "1e4"), ("MAX_CONTEXT", "10000001"),
        ("MAX_LORA_COLUMNS", "15"), ("MAX_LORA_COLUMNS", "65537"), ("MAX_LORA_COLUMNS", "²"),
        ("SEPARATE_REQUESTS", "2"), ("SEPARATE_REQUESTS", "yes"),
    ],
)  # fmt: skip
def test_a_setting_that_is_no_number_in_range_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(BadSetting, match=name) as caught:
        EngineLimits.from_environment(Path())
    assert repr(value) in str(caught.value)


def test_the_engine_says_what_it_takes_and_why(tiny_base: Path) -> None:
    said: list[str] = []
    base = load_base(str(tiny_base), "fp32", say=said.append)
    limits = EngineLimits(concurrency=2, context=256, columns=32)
    open_engine(base, limits=limits, say=said.append).close()
    text: Any = "\n".join(said)
    assert "adapters: room for 32 ranks together" in text
    assert "keys and values: 2 slots × 256 tokens × 0.5 KiB" in text
