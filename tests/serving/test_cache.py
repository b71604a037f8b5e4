"""How much memory keys, values and adapters get: the arithmetic, what is cut, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from alpaca.errors import BadSetting, NoRoom
from alpaca.serving.cache import PLACES, SHARE, CachePlan, KeyValueCache, plan_cache
from alpaca.serving.decoder import Decoder
from alpaca.serving.draft import LONGEST
from alpaca.serving.kernels import open_kernels
from alpaca.serving.limits import COLUMNS, EngineLimits, bytes_per_column, plan_columns
from alpaca.serving.loading import load_base, open_engine

CPU = torch.device("cpu")
CONFIG = LlamaConfig(
    vocab_size=100, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=24,
)  # fmt: skip
PER_TOKEN = 2 * 3 * 2 * 24 * 2  # key and value, layers, heads, head_dim, bytes in bf16


def plan(free: float, places: int | None = 8, context: int = 4096, dtype: torch.dtype = torch.bfloat16) -> CachePlan:
    """`free`: in tokens that fit into the share of it."""
    budget = int(free * PER_TOKEN / SHARE["cpu"]) + 1
    return plan_cache(CONFIG, dtype, places=places, context=context, free=budget, device=CPU)


def cache_of(tokens: int) -> KeyValueCache:
    return KeyValueCache(CONFIG, CachePlan(tokens, tokens, 8, PER_TOKEN, ""), torch.float32, CPU)


def test_a_token_takes_a_key_and_a_value_in_every_layer() -> None:
    found = plan(1e6)
    assert (found.tokens, found.context, found.places, found.bytes_per_token) == (8 * 4096, 4096, 8, PER_TOKEN)
    assert plan(1e6, dtype=torch.float32).bytes_per_token == 2 * PER_TOKEN
    assert "32,768 tokens × 0.6 KiB = 0.02 GB" in found.reason and "would not fit" not in found.reason
    assert "for 8 answers at a time, each of up to 4,096 tokens" in found.reason


def test_the_memory_is_what_the_plan_says() -> None:
    cache = KeyValueCache(CONFIG, plan(1e6, context=128), torch.bfloat16, CPU)
    held = sum(memory.nbytes for memory in (*cache.keys, *cache.values))
    assert held == 8 * 128 * PER_TOKEN
    assert not any(memory.any() for memory in (*cache.keys, *cache.values))


@pytest.mark.parametrize(
    ("room", "tokens", "context", "places"),
    [
        (1e6, 8 * 4096, 4096, 16),  # as many answers as the device makes use of share eight contexts
        (8 * 4096 - 1, 8 * 4096 - 64, 4096, 16),  # less is shared out in blocks of 64 …
        (16 * 512, 16 * 512, 4096, 16),
        (16 * 512 - 1, 16 * 512 - 64, 4096, 15),  # … to fewer answers where each would have less than 512 …
        (4095, 4032, 4032, 7),  # … and none is longer than all there is
        (1024, 1024, 1024, 2),
    ],
)
def test_memory_is_shared_by_as_many_answers_as_it_is_enough_for(
    room: float, tokens: int, context: int, places: int
) -> None:
    found = plan(room, places=None)
    assert (found.tokens, found.context, found.places) == (tokens, context, places)
    assert ("; 32,768 would not fit" in found.reason) == (tokens != 8 * 4096)


def test_a_number_of_places_that_was_asked_for_is_kept_while_each_can_have_a_block() -> None:
    assert [plan(1e6, places=count).places for count in (1, 8, 256)] == [1, 8, 256]
    assert plan(1e6, places=1).tokens == 4096
    assert plan(1024, places=256).places == 16


def test_a_graphics_card_makes_use_of_more() -> None:
    found = plan_cache(
        CONFIG, torch.bfloat16, places=None, context=4096, free=10**12, device=torch.device("cuda")
    )  # fmt: skip
    assert (found.places, found.tokens) == (PLACES["cuda"], 64 * 4096) == (64, 64 * 4096)


def test_a_short_context_is_never_made_longer() -> None:
    found = plan(250, context=100)
    assert (found.context, found.tokens) == (100, 192)


@pytest.mark.parametrize(("room", "context"), [(1023, 4096), (127, 100)])
def test_too_little_for_one_short_context_is_refused_with_what_to_do(room: int, context: int) -> None:
    with pytest.raises(NoRoom, match=rf"E1104.*{min(context, 1024):,} tokens.*PRECISION=nf4.*MAX_CONTEXT"):
        plan(room, context=context)


def test_writing_reaches_the_places_named() -> None:
    cache = cache_of(128)
    keys, values = torch.randn(3, 2, 24), torch.randn(3, 2, 24)
    cache.write(1, torch.tensor([9, 70, 71]), torch.cat((keys, values), 1))
    for row, place in enumerate([9, 70, 71]):
        assert torch.equal(cache.keys[1][:, place], keys[row])
        assert torch.equal(cache.values[1][:, place], values[row])
    assert not cache.keys[0].any() and cache.keys[1].count_nonzero() == keys.count_nonzero()


@pytest.mark.parametrize(("source", "target"), [(64, 192), (64, 80), (80, 64), (64, 64)])
def test_a_copy_holds_what_was_there_before_and_nothing_else(source: int, target: int) -> None:
    cache = cache_of(256)
    for memory in (*cache.keys, *cache.values):
        memory.normal_()
    before = [memory.clone() for memory in (*cache.keys, *cache.values)]
    cache.copy(source, target, 37)
    for memory, old in zip((*cache.keys, *cache.values), before, strict=True):
        assert torch.equal(memory[:, target : target + 37], old[:, source : source + 37])
        memory[:, target : target + 37] = old[:, target : target + 37]
        assert torch.equal(memory, old)


def fill(cache: KeyValueCache, start: int, length: int) -> None:
    """An answer's keys and values, all of them ones."""
    for layer in range(3):
        cache.write(layer, torch.arange(start, start + length), torch.ones(length, 4, 24))


def not_zero(cache: KeyValueCache) -> list[int]:
    """The tokens at which anything is left; the same in every layer."""
    found = {tuple(memory.any(-1).any(0).nonzero().flatten().tolist()) for memory in (*cache.keys, *cache.values)}
    assert len(found) == 1
    return list(found.pop())


def test_a_range_is_empty_behind_what_a_new_answer_keeps() -> None:
    cache = cache_of(512)
    for start, length in ((0, 64), (64, 100), (192, 130), (448, 5)):
        fill(cache, start, length)
        cache.end(start, length)
    cache.begin(64, 256, kept=70)
    assert not_zero(cache) == [*range(64 + 70), *range(320, 322), *range(448, 453)]
    cache.begin(0, 64, kept=0)
    cache.begin(320, 192, kept=0)
    assert not_zero(cache) == [*range(64, 64 + 70)]


def test_an_answer_that_moved_leaves_nothing_to_who_comes_after() -> None:
    cache = cache_of(512)
    fill(cache, 128, 100)
    cache.move(128, 64, 100, 128)
    assert not_zero(cache) == [*range(64, 164), *range(192, 228)], "what lies in the range of nobody may stay"
    cache.end(64, 100)
    cache.begin(0, 512, kept=0)
    assert not_zero(cache) == []


def test_what_wrong_guesses_left_behind_an_answer_is_gone_before_the_next() -> None:
    cache = cache_of(512)
    fill(cache, 64, 120 + LONGEST)
    cache.end(64, 120)
    cache.begin(0, 512, kept=0)
    assert not_zero(cache) == []
    fill(cache, 256, 120 + LONGEST)
    cache.move(256, 0, 120, 128)
    cache.begin(128, 384, kept=0)
    assert not_zero(cache) == [*range(120)]


# --- room for adapters --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["fp32", "bf16", "kernels"])
def test_a_column_takes_what_the_decoder_sets_aside_for_it(how: str) -> None:
    dtype, by_kernels = torch.float32 if how == "fp32" else torch.bfloat16, how == "kernels"
    config = LlamaConfig(**{**CONFIG.to_dict(), "tie_word_embeddings": True, "head_dim": 32})
    kernels = open_kernels(config, dtype, CPU, by_kernels, print)
    decoder = Decoder(LlamaForCausalLM(config).to(dtype), columns=32, context=64, kernels=kernels)
    projections = {id(projection): projection for projection, _ in decoder.projections.values()}.values()
    parts = [tensor for p in projections for tensor in (p.down, p.up, p.up_turned) if tensor is not None]
    assert (kernels is not None) == by_kernels
    assert sum(tensor.nbytes for tensor in parts) == 32 * bytes_per_column(config, dtype, CPU, kernels=by_kernels)


@pytest.mark.parametrize(
    ("wanted", "free", "columns"),
    [(None, 10**12, COLUMNS), (None, 0, 16), (48, 0, 48), (50, 10**12, 48), (16, 10**12, 16)],
)
def test_columns_are_a_multiple_of_a_page_and_at_least_one(wanted: int | None, free: int, columns: int) -> None:
    assert plan_columns(1000, wanted, free) == columns


def test_columns_take_a_tenth_of_the_free_memory_at_most() -> None:
    assert plan_columns(500, None, 500 * 1000) == 96


# --- what the operator sets ---------------------------------------------------------------------------------------
NAMES = (
    "MAX_CONCURRENCY", "QUEUE_SECONDS", "MAX_CONTEXT", "MAX_LORA_COLUMNS", "ADAPTER_FOLDERS", "SEPARATE_REQUESTS",
    "GRAPHS", "DRAFTS",
)  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_without_settings_the_defaults_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    assert EngineLimits.from_environment(Path("/mine")) == EngineLimits(
        patience=120, roots=(Path("/mine/adapters"), Path("/mine/lora-*"))
    )
    for name in NAMES:
        monkeypatch.setenv(name, " " if name != "ADAPTER_FOLDERS" else "")
    assert EngineLimits.from_environment(Path("/mine")) == EngineLimits(patience=120)


def test_settings_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(NAMES, ("3", "9", "2048", " 64 ", "/a:/b c:", "1", "0", "0"), strict=True):
        monkeypatch.setenv(name, value)
    assert EngineLimits.from_environment(Path("/mine")) == EngineLimits(
        3, 9, 2048, 64, (Path("/a"), Path("/b c")), True, False, False
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_CONCURRENCY", "0"), ("MAX_CONCURRENCY", "257"), ("MAX_CONCURRENCY", "-1"), ("MAX_CONCURRENCY", "8.0"),
        ("MAX_CONCURRENCY", "eight"), ("MAX_CONTEXT", "15"), ("MAX_CONTEXT", "1e4"), ("MAX_CONTEXT", "10000001"),
        ("MAX_LORA_COLUMNS", "15"), ("MAX_LORA_COLUMNS", "65537"), ("MAX_LORA_COLUMNS", "²"),
        ("QUEUE_SECONDS", "0"), ("QUEUE_SECONDS", "86401"), ("SEPARATE_REQUESTS", "2"), ("SEPARATE_REQUESTS", "yes"),
        ("GRAPHS", "2"), ("GRAPHS", "off"),
        ("DRAFTS", "2"), ("DRAFTS", "no"),
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
    assert "keys and values: 512 tokens × 0.5 KiB" in text
    assert "for 2 answers at a time, each of up to 256 tokens" in text
