"""The engine answers as transformers' generate() and PEFT do, one request never harms another, cancelled work ends."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from alpaca.adapter.archive import pack
from alpaca.errors import (
    AdapterChanged,
    AdapterNotFound,
    AlpacaError,
    BadAdapter,
    BadMessages,
    BadTemplate,
    EmptyPrompt,
    EngineStopped,
    GenerationFailed,
    NoRoom,
    NoTurn,
    PromptTooLong,
    TemplateNotFound,
    WrongBase,
)
from alpaca.serving import placement
from alpaca.serving.cache import WHOLE, KeyValueCache
from alpaca.serving.engine import Engine
from alpaca.serving.inputs import request_from_inputs
from alpaca.serving.limits import EngineLimits
from alpaca.serving.loading import LoadedBase, end_ids, load_base, open_engine
from alpaca.serving.output import Output
from alpaca.serving.slots import BLOCK
from alpaca.serving.stream import Chunk, FinishReason, Stream
from tests.conftest import make_base
from tests.serving.oracle import Oracle
from tests.serving.peft_adapters import EVERY_KIND, HEAD, make_adapter, make_adapters

PROMPTS = ["hay", "Tell me about the alpaca.", "你好 🦙 " * 20, "a\n\n### Response:\nb"]
WORDS = ["hay ", "the alpaca ", "你好", " x", "grass\n", "### Response:", "  .", "🦙"]
Open = Callable[..., Engine]


@pytest.fixture(scope="module")
def roots(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of adapters; `mine` has a card that names the alpaca template."""
    folder = make_adapters(tiny_base, tmp_path_factory.mktemp("adapters"), EVERY_KIND)
    make_adapter(tiny_base, folder / "mine", seed=9, template="alpaca")
    return folder


@pytest.fixture(scope="module")
def oracle(tiny_base: Path, roots: Path) -> Oracle:
    return Oracle(tiny_base, roots)


@pytest.fixture
def loaded(tiny_base: Path) -> LoadedBase:
    return load_base(str(tiny_base), "fp32", say=lambda line: None)


@pytest.fixture
def opened(loaded: LoadedBase, roots: Path) -> Iterator[Open]:
    """Opens engines on the tiny base, one after the other, and closes them."""
    engines: list[Engine] = []

    def open_one(adapter: Path | None = None, **limits: Any) -> Engine:
        for engine in engines:
            engine.close()
        limited = EngineLimits(**{"roots": (roots,), **limits})
        engines.append(open_engine(loaded, adapter, limits=limited, say=lambda line: None))
        return engines[-1]

    yield open_one
    for engine in engines:
        engine.close()


def submit(engine: Engine, prompt: str = "hay", **inputs: Any) -> Stream:
    return engine.submit(request_from_inputs(prompt=prompt, **{"max_tokens": 24, "temperature": 0.0, **inputs}))


def ask(engine: Engine, prompt: str = "hay", **inputs: Any) -> list[Chunk]:
    return list(submit(engine, prompt, **inputs))


def text(chunks: list[Chunk], index: int = 0) -> str:
    return "".join(chunk.text for chunk in chunks if chunk.index == index)


def reused(chunks: list[Chunk]) -> list[int]:
    """Tokens of the prompt that each answer found in the cache."""
    ends = sorted((chunk for chunk in chunks if chunk.usage), key=lambda chunk: chunk.index)
    return [chunk.usage.reused_tokens for chunk in ends if chunk.usage]


def long_request(engine: Engine, **inputs: Any) -> Stream:
    return submit(engine, **{"max_tokens": 900, "min_tokens": 900, "temperature": 1.0, "seed": 1, **inputs})


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def assert_all_is_free(engine: Engine, slots: int = 16) -> None:
    """Soon nothing runs or waits, and every slot, place and file that was read is given back."""

    def free() -> bool:
        stats = engine.stats()
        return (
            not (stats.running or stats.waiting or stats.pinned or len(engine._reader)) and engine._slots.free == slots
        )

    wait_for(free)


def in_threads(client: Callable[[int], Any], count: int) -> list[Any]:
    """What `count` threads that run at once return, by their number; an error in one is raised here."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(client, range(count)))


def fail_once(engine: Engine, trouble: BaseException) -> None:
    """The next forward pass raises instead."""
    forward = engine._decoder.forward

    def fail(*args: Any) -> Any:
        engine._decoder.forward = forward  # type: ignore[method-assign]
        raise trouble

    engine._decoder.forward = fail  # type: ignore[method-assign]


def small(opened: Open, **limits: Any) -> Engine:
    """With room for five blocks, and eight places unless the limits say otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(WHOLE, "cpu", 1)
        return opened(**{"concurrency": 8, "context": 5 * BLOCK, **limits})


PLAIN = {"prompt_template": "{prompt}"}


# --- answers ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3}], ids=["plain", "repetition penalty"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_answers_are_those_of_generate(
    oracle: Oracle, opened: Open, prompt: str, options: dict[str, float]
) -> None:
    assert text(ask(opened(), prompt, **options)) == oracle.chat(prompt, **options)


@pytest.mark.parametrize("kind", list(EVERY_KIND))
def test_greedy_answers_with_an_adapter_are_those_of_peft(oracle: Oracle, roots: Path, opened: Open, kind: str) -> None:
    engine = opened(roots / kind)
    scales = (1.0, 0.0) if kind == "dora" else (1.0, 0.0, 0.5, 3.0)
    for prompt in PROMPTS:
        answers = {scale: text(ask(engine, prompt, adapter_scale=scale)) for scale in scales}
        for scale, answer in answers.items():
            assert answer == oracle.chat(prompt, kind if scale else "none", scale=scale or 1.0), (prompt, scale)
        assert answers[1.0] != answers[0.0] == text(ask(engine, prompt, adapter="none"))


def random_requests(count: int, names: list[str], longest: int, seed: int) -> list[dict[str, Any]]:
    """Requests with prompts of 1 to `longest` tokens or somewhat fewer, each with its adapter and length."""
    draw = random.Random(seed)
    requests = []
    for number in range(count):
        words = "".join(draw.choice(WORDS) for _ in range(draw.choice([1, 5, 40, longest // 5])))
        prompt = {0: "a", 1: "grass and hay " * (longest // 3)}.get(number, words)
        requests.append({"prompt": prompt, "adapter": draw.choice(names), "max_tokens": draw.randint(1, 60)})
    return requests


@pytest.mark.parametrize("heads", ["grouped-query, tied", "multi-head, untied"])
def test_mixed_adapters_that_come_and_go_at_random_get_the_answers_of_peft(
    tiny_base: Path, tiny_mha_base: Path, roots: Path, tmp_path: Path, heads: str
) -> None:
    base, folder = tiny_base, roots
    if heads == "multi-head, untied":
        kinds = {**EVERY_KIND, "head": {**HEAD, "copy_of_head": True}}  # as PEFT saves it by default
        base, folder = tiny_mha_base, make_adapters(tiny_mha_base, tmp_path, kinds)
    oracle = Oracle(base, folder)
    names = ["none", *EVERY_KIND, *(["head"] if folder is tmp_path else [])]
    requests = random_requests(36, names, 700, seed=len(names))
    lengths = [len(oracle.tokenizer.encode(r["prompt"], add_special_tokens=False)) for r in requests]
    assert min(lengths) == 1 and 690 < max(lengths) <= 900
    expected = [oracle.tokens(**request) for request in requests]
    # room for two of the adapters at a time, so that they take turns
    limits = EngineLimits(columns=48, roots=(folder,))
    engine = open_engine(load_base(str(base), "fp32", say=lambda line: None), limits=limits, say=lambda line: None)

    def client(number: int) -> list[Chunk]:
        time.sleep(random.Random(number).random() * 0.5)
        return ask(engine, **requests[number], prompt_template="{prompt}")

    got = in_threads(client, len(requests))
    for number, tokens in enumerate(expected):
        last = got[number][-1].usage
        assert last is not None and last.input_tokens == lengths[number]
        assert (text(got[number]), last.output_tokens) == (oracle.decode(tokens), len(tokens)), requests[number]
    assert engine.stats().loads >= len(names) - 1
    assert_all_is_free(engine)
    engine.close()


def test_answers_are_made_in_one_batch(opened: Open) -> None:
    engine = opened()
    streams = [submit(engine, prompt, max_tokens=200, min_tokens=200) for prompt in PROMPTS]
    sizes = [list(stream)[-1].usage.batch_size for stream in streams]
    assert max(sizes) > 2
    assert engine.stats().steps < 500


def test_the_base_computes_what_it_did_after_an_engine_had_it(
    loaded: LoadedBase, roots: Path, oracle: Oracle, opened: Open
) -> None:
    settings = loaded.model.generation_config
    answers = []
    for folder in (None, roots / "dora", None, roots / "dora"):
        engine = opened(folder)
        answers.append(text(ask(engine)))
        engine.close()
    assert answers[0] == answers[2] != answers[1] == answers[3]
    ids = torch.tensor([loaded.tokenizer.encode("grass and hay", add_special_tokens=False)])
    assert torch.equal(loaded.model(ids).logits, oracle.model()(ids).logits)
    assert loaded.model.generation_config is settings


def test_the_adapters_template_is_used(roots: Path, opened: Open) -> None:
    engine = opened(roots / "mine")
    inputs = {name: ask(engine, **options)[-1].usage.input_tokens for name, options in {
        "its own": {}, "named": {"prompt_template": "alpaca"}, "the base's": {"prompt_template": "chat"},
        "by request": {"adapter": "mine"}, "without it": {"adapter": "none"}, "of another": {"adapter": "a"},
    }.items()}  # fmt: skip
    assert inputs["its own"] == inputs["named"] == inputs["by request"]
    assert inputs["the base's"] == inputs["without it"] == inputs["of another"] != inputs["its own"]


def test_settings_of_the_base_do_not_leak_into_requests(loaded: LoadedBase, oracle: Oracle, opened: Open) -> None:
    loaded.model.generation_config.update(temperature=0.1, do_sample=True, repetition_penalty=1.8, max_length=30)
    assert text(ask(opened())) == oracle.chat("hay")


# --- adapters that can't be served --------------------------------------------------------------------------------
def test_an_adapter_of_another_base_is_refused(tmp_path: Path, roots: Path) -> None:
    other = load_base(str(make_base(tmp_path / "other", seed=9)), "fp32", say=lambda line: None)
    with pytest.raises(WrongBase, match="fingerprint"):
        open_engine(other, roots / "mine", say=lambda line: None)


def test_an_adapter_outside_of_the_roots_is_refused(opened: Open, roots: Path) -> None:
    engine = opened(roots / "a", roots=())
    with pytest.raises(AdapterNotFound):
        ask(engine, adapter=str(roots / "a"))
    assert ask(engine)[-1].finish


def test_an_adapter_of_a_rank_above_the_room_is_refused_at_once(opened: Open) -> None:
    engine = opened(columns=16)
    with pytest.raises(BadAdapter, match=r"rank 24.*room for 16.*MAX_LORA_COLUMNS"):
        submit(engine, adapter="patterns")
    assert engine.stats().submitted == 0


def test_a_dora_adapter_is_served_at_full_strength_or_not_at_all(opened: Open, oracle: Oracle) -> None:
    engine = opened()
    with pytest.raises(BadAdapter, match=r"DoRA.*adapter_scale must be 0 or 1"):
        submit(engine, adapter="dora", adapter_scale=0.5)
    assert text(ask(engine, adapter="dora", adapter_scale=0.0)) == oracle.chat("hay")


def deleted(folder: Path) -> None:
    shutil.rmtree(folder)


def spoilt(folder: Path) -> None:
    """NaN between the check and the reading, in a file that looks the same from outside."""
    weights = folder / "adapter_model.safetensors"
    before = weights.stat()
    tensors = load_file(weights)
    next(iter(tensors.values())).fill_(torch.nan)
    save_file(tensors, folder / "aside", metadata={"format": "pt"})
    weights.write_bytes((folder / "aside").read_bytes())
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(("harm", "error"), [(deleted, AdapterChanged), (spoilt, BadAdapter)], ids=["gone", "NaN"])
def test_an_adapter_that_can_not_be_read_fails_its_request_alone(
    opened: Open, roots: Path, tmp_path: Path, harm: Callable[[Path], None], error: type[AlpacaError]
) -> None:
    shutil.copytree(roots / "b", tmp_path / "brittle")
    engine = opened(roots=(roots, tmp_path))
    running = long_request(engine, max_tokens=300, min_tokens=300)
    next(running)
    before = text(ask(engine, adapter="a"))
    harmful = threading.Event()
    read = engine._reader.thread.submit(harmful.wait, 60)  # holds the loader back until the harm is done
    stream = submit(engine, adapter="brittle", n=2)
    behind = submit(engine, adapter="none")
    harm(tmp_path / "brittle")
    harmful.set()
    assert read.result()
    with pytest.raises(error):
        list(stream)
    assert list(behind)[-1].finish and list(running)[-1].finish is FinishReason.LENGTH
    assert engine.stats().finished[FinishReason.FAILED] == 2
    assert text(ask(engine, adapter="a")) == before
    assert_all_is_free(engine)


# --- the adapter of requests that name none -----------------------------------------------------------------------
def test_a_default_that_was_trained_anew_is_served_from_then_on(tiny_base: Path, opened: Open, tmp_path: Path) -> None:
    mine = make_adapter(tiny_base, tmp_path / "mine", seed=1)
    engine = opened(mine)
    before = text(ask(engine))
    running = long_request(engine)
    next(running)
    shutil.rmtree(mine)
    make_adapter(tiny_base, mine, seed=2)
    after = text(ask(engine))
    assert before != after == Oracle(tiny_base, tmp_path).chat("hay", "mine")
    assert list(running)[-1].finish is FinishReason.LENGTH, "what runs ends with the adapter it began with"


def test_while_a_default_is_replaced_the_one_before_answers(tiny_base: Path, opened: Open, tmp_path: Path) -> None:
    mine = make_adapter(tiny_base, tmp_path / "mine", seed=1)
    engine = opened(mine)
    before = text(ask(engine))
    config = (mine / "adapter_config.json").rename(tmp_path / "config")
    assert text(ask(engine)) == before
    config.rename(mine / "adapter_config.json")
    assert text(ask(engine)) == before


def test_a_default_that_left_the_cache_is_unpacked_again(
    roots: Path, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALPACA_CACHE", str(tmp_path / "cache"))
    engine = opened(pack(roots / "a", tmp_path / "a.zip"), columns=16)
    before = text(ask(engine))
    ask(engine, adapter="b")  # takes its place in memory
    shutil.rmtree(tmp_path / "cache" / "adapters")
    assert text(ask(engine)) == before


# --- adapters in memory -------------------------------------------------------------------------------------------
def test_the_adapter_unused_for_longest_makes_room(opened: Open, oracle: Oracle) -> None:
    engine = opened(columns=32)
    for name, loads in (("a", 1), ("b", 2), ("a", 2), ("dora", 3), ("a", 3), ("b", 4), ("a", 4), ("patterns", 5)):
        assert text(ask(engine, adapter=name)) == oracle.chat("hay", name)
        assert engine.stats().loads == loads, name
        assert engine.stats().pinned == 0
    assert engine.stats().adapters == 1


def test_a_request_waits_while_all_places_for_adapters_are_in_use(opened: Open, oracle: Oracle) -> None:
    engine = opened(columns=16)
    first = long_request(engine, adapter="a")
    next(first)
    second, third = submit(engine, adapter="b"), submit(engine)
    steps = engine.stats().steps
    wait_for(lambda: engine.stats().steps > steps + 20)
    assert (engine.stats().waiting, engine.stats().pinned, engine.stats().loads) == (1, 1, 1)
    assert text(list(third)) == oracle.chat("hay")
    first.close()
    assert text(list(second)) == oracle.chat("hay", "b")
    assert_all_is_free(engine)


def test_who_needs_no_adapter_or_has_it_there_goes_past_one_that_waits_for_room(opened: Open, oracle: Oracle) -> None:
    engine = opened(columns=16)
    first = long_request(engine, adapter="a")
    next(first)
    second = submit(engine, adapter="b")
    wait_for(lambda: engine.stats().waiting == 1)
    for name in ("none", "a", "none", "a"):
        assert text(ask(engine, adapter=name)) == oracle.chat("hay", name)
    assert (engine.stats().waiting, engine.stats().running, engine.stats().loads) == (1, 1, 1)
    first.close()
    assert text(list(second)) == oracle.chat("hay", "b")
    assert_all_is_free(engine)


def test_one_that_waits_for_room_is_not_passed_over_for_ever(
    opened: Open, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three clients submit their next request while the one before runs, so that the other adapter is always in use."""
    monkeypatch.setattr(placement, "PATIENCE", 60)
    engine = opened(columns=16)
    first = submit(engine, adapter="a", max_tokens=120, min_tokens=120)
    next(first)
    second, answered = submit(engine, adapter="b"), threading.Event()

    def client(length: int) -> int:
        count, running = 0, submit(engine, adapter="a", max_tokens=length)
        while not answered.is_set():
            for _ in range(length // 4):
                next(running, None)
            following = submit(engine, adapter="a", max_tokens=length, min_tokens=length)
            list(running)
            count, running = count + 1, following
        return count

    with ThreadPoolExecutor(3) as pool:
        clients = [pool.submit(client, length) for length in (20, 30, 45)]
        try:
            assert text(list(second)) == oracle.chat("hay", "b")
        finally:
            answered.set()
    assert all(done.result() for done in clients)
    assert_all_is_free(engine)


def test_a_request_does_not_wait_for_a_place_for_ever(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "PATIENCE", 0.2)
    engine = opened(columns=16)
    first = long_request(engine, adapter="a")
    next(first)
    second = submit(engine, adapter="b", n=2)
    with pytest.raises(NoRoom, match="E1104"):
        list(second)
    assert next(first).finish is None
    assert engine.stats().finished == {FinishReason.FAILED: 2}
    first.close()
    assert ask(engine, adapter="b")[-1].finish
    assert_all_is_free(engine)


def test_a_request_cancelled_while_its_adapter_is_read_leaves_nothing(opened: Open) -> None:
    engine = opened()
    reading = threading.Event()
    engine._reader.thread.submit(reading.wait, 60)
    stream = submit(engine, adapter="a")
    wait_for(lambda: len(engine._reader) > 0)
    stream.close()
    reading.set()
    assert ask(engine)[-1].finish
    wait_for(lambda: engine.stats().finished.get(FinishReason.CANCELLED) == 1)
    assert_all_is_free(engine)


def test_figures_can_be_read_while_adapters_come_and_go(opened: Open) -> None:
    engine = opened(columns=16)
    troubles: list[BaseException] = []
    done = threading.Event()

    def watch() -> None:
        try:
            while not done.is_set():
                engine.stats()
        except BaseException as error:
            troubles.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    watchers = [threading.Thread(target=watch) for _ in range(3)]
    try:
        for thread in watchers:
            thread.start()
        for number in range(20):
            ask(engine, adapter="ab"[number % 2], max_tokens=1)
    finally:
        done.set()
        sys.setswitchinterval(interval)
        for thread in watchers:
            thread.join()
    assert not troubles


# --- what is in the cache already ---------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["none", "patterns", "dora"])
def test_a_conversation_is_answered_as_by_a_fresh_engine(opened: Open, loaded: LoadedBase, name: str) -> None:
    drawn = {"temperature": 1.0, "seed": 5, "adapter": name}
    engine = opened()
    messages: list[dict[str, str]] = []
    talks = []
    for turn in range(5):
        messages.append({"role": "user", "content": f"{turn}. " + "tell me of hay and grass " * (turn + 1)})
        ask(engine, f"something else {turn}", adapter="a")  # between the turns
        chunks = ask(engine, "", messages=messages, **drawn)
        talks.append((list(messages), text(chunks), reused(chunks)[0], chunks[-1].usage.input_tokens))
        messages.append({"role": "assistant", "content": text(chunks)})
    assert talks[0][2] == 0
    for (_, _, _, before), (_, _, found, length) in pairwise(talks):
        assert before <= found < length
    for asked, answer, _, _ in talks:
        fresh = opened()
        chunks = ask(fresh, "", messages=asked, **drawn)
        assert (text(chunks), reused(chunks)) == (answer, [0])


def test_the_same_prompt_with_another_adapter_or_strength_is_computed_anew(opened: Open, oracle: Oracle) -> None:
    engine, prompt = opened(), "grass and hay " * 30
    asked: list[tuple[str, float]] = [("none", 1.0), ("a", 1.0), ("a", 0.5), ("b", 1.0), ("dora", 1.0)]
    for name, scale in asked:
        chunks = ask(engine, prompt, adapter=name, adapter_scale=scale)
        assert reused(chunks) == [0]
        assert text(chunks) == oracle.chat(prompt, name, scale=scale)
    for name, scale in asked:
        chunks = ask(engine, prompt, adapter=name, adapter_scale=scale)
        assert reused(chunks) == [chunks[-1].usage.input_tokens - 1]
        assert text(chunks) == oracle.chat(prompt, name, scale=scale)
    assert reused(ask(engine, prompt, adapter="a", adapter_scale=0.0))[0] > 0  # which is the base


def test_an_adapter_whose_files_change_is_another(opened: Open, tmp_path: Path, tiny_base: Path) -> None:
    engine = opened(roots=(tmp_path,))
    answers = []
    for seed in (1, 2):
        shutil.rmtree(tmp_path / "mine", ignore_errors=True)
        make_adapter(tiny_base, tmp_path / "mine", seed=seed)
        chunks = ask(engine, "grass and hay " * 10, adapter="mine")
        assert reused(chunks) == [0]
        answers.append(text(chunks))
    assert answers[0] != answers[1]


def test_separate_requests_share_nothing_and_answers_of_one_share_their_prompt(opened: Open, oracle: Oracle) -> None:
    engine, prompt = opened(separate=True), "grass and hay " * 30
    for name in ("none", "a"):
        for _ in range(2):
            chunks = ask(engine, prompt, adapter=name, n=2)
            assert reused(chunks) == [0, chunks[-1].usage.input_tokens - 1]
            assert text(chunks, 1) == oracle.chat(prompt, name)


def test_a_client_is_not_told_how_much_of_its_prompt_was_computed_before(opened: Open) -> None:
    engine, guess = opened(), "the patient is called Alpaca " * 5
    ask(engine, guess)
    figures = []
    for prompt in (guess, guess.replace("Alpaca", "Llama.")):
        output = Output(submit(engine, prompt), 1)
        list(output.pieces())
        assert "reused" not in output.summary()
        figures.append(output.metrics().keys())
    assert figures[0] == figures[1]


def test_what_runs_can_be_copied_from(opened: Open, oracle: Oracle) -> None:
    engine, prompt = opened(), "grass and hay " * 30
    first = submit(engine, prompt, max_tokens=300, min_tokens=300)
    begun = [next(first)]
    second = ask(engine, prompt)
    assert reused(second)[0] > 0
    assert text(second) == oracle.chat(prompt)
    others = ask(engine, prompt + "and more")
    assert 0 < reused(others)[0] < others[-1].usage.input_tokens - 1
    assert text(others) == oracle.chat(prompt + "and more")
    whole = begun + list(first)
    assert text(whole) == text(ask(opened(), prompt, max_tokens=300, min_tokens=300))


@pytest.mark.parametrize("slots", [1, 2, 8])
def test_several_answers_share_one_prefill(opened: Open, slots: int) -> None:
    engine = opened(concurrency=slots)
    settings = {"temperature": 1.0, "seed": 7}
    chunks = ask(engine, "hay and grass " * 20, n=5, **settings)
    first, *others = reused(chunks)
    assert first == 0
    assert set(others) == {chunks[-1].usage.input_tokens - 1}
    alone = opened(concurrency=1)
    assert text(chunks) == text(ask(alone, "hay and grass " * 20, **settings))
    for index in range(1, 5):
        seed = next(chunk.usage.seed for chunk in chunks if chunk.usage and chunk.index == index)
        assert len({text(chunks, other) for other in range(index + 1)}) == index + 1
        assert seed != settings["seed"]
    assert_all_is_free(alone, 1)


def test_greedy_answers_of_one_request_are_all_the_same(opened: Open, oracle: Oracle) -> None:
    chunks = ask(opened(concurrency=2), n=5, adapter="b")
    assert {text(chunks, index) for index in range(5)} == {oracle.chat("hay", "b")}


def test_a_copy_that_fails_costs_its_request_alone(opened: Open) -> None:
    engine = opened(concurrency=2)
    copy, failed = engine._cache.copy, []

    def fail(*args: int) -> None:
        engine._cache.copy = copy  # type: ignore[method-assign]
        failed.append(args)
        raise RuntimeError("CUDA out of memory")

    engine._cache.copy = fail  # type: ignore[method-assign]
    with pytest.raises(GenerationFailed):
        ask(engine, "hay and grass " * 5, n=2)
    assert failed
    assert_all_is_free(engine, 2)
    assert len(reused(ask(engine, "hay and grass " * 5, n=2))) == 2


def crowded(opened: Open) -> tuple[Engine, list[Stream], Stream, list[tuple[int, ...]]]:
    """A pool of five blocks that five answers fill; while they decode, two end, and a long one needs both their blocks:
    the engine, those that run on, the long one, and a list of the moves that it takes."""
    engine, plain = small(opened), {"min_tokens": 30, **PLAIN}
    streams: list[Stream] = []
    later: list[Stream] = []
    moves: list[tuple[int, ...]] = []
    forward, move, steps, ready = engine._decoder.forward, engine._cache.move, [0], threading.Event()

    def play(step: Any, cache: Any) -> Any:
        ready.wait(60)
        steps[0] += len(engine._running) == 5
        if steps[0] == 4:
            streams[0].close()
            streams[2].close()
            later.append(submit(engine, "grass", max_tokens=100, **plain))
            engine._decoder.forward = forward  # type: ignore[method-assign]
        return forward(step, cache)

    def count(*args: int) -> None:
        moves.append(args)
        move(*args)

    engine._decoder.forward, engine._cache.move = play, count  # type: ignore[method-assign]
    streams += [submit(engine, f"{number}", max_tokens=30, **plain) for number in range(5)]
    ready.set()
    wait_for(lambda: bool(later))
    return engine, [streams[1], *streams[3:]], later[0], moves


def test_running_answers_that_are_pushed_together_go_on_as_before(opened: Open) -> None:
    engine, running, long, moves = crowded(opened)
    texts = [text(list(stream)) for stream in (*running, long)]
    assert [(source // BLOCK, target // BLOCK) for source, target, *_ in moves] == [(1, 0), (3, 1), (4, 2)]
    assert_all_is_free(engine, 5)
    alone = opened(concurrency=1)
    asked = [("1", 30), ("3", 30), ("4", 30), ("grass", 100)]
    plain = {"min_tokens": 30, **PLAIN}
    assert texts == [text(ask(alone, prompt, max_tokens=length, **plain)) for prompt, length in asked]


def test_a_push_that_fails_ends_what_it_would_have_moved_and_nothing_later(opened: Open, oracle: Oracle) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeyValueCache, "move", broken)
        engine, running, long, _ = crowded(opened)
        for stream in (*running, long):
            with pytest.raises(GenerationFailed):
                list(stream)
    assert [text(ask(engine, prompt)) for prompt in ("hay", "1")] == [oracle.chat("hay"), oracle.chat("1")]


# --- how it is drawn ----------------------------------------------------------------------------------------------
def test_a_seed_gives_the_same_answer_and_zero_is_a_seed(opened: Open) -> None:
    engine = opened()
    drawn = {"temperature": 1.0, "top_p": 1.0}
    answers = {}
    for seed in (0, 1, 2):
        torch.manual_seed(seed + 99)
        answers[seed] = text(ask(engine, **drawn, seed=seed))
        torch.rand(7)
        assert text(ask(engine, **drawn, seed=seed)) == answers[seed]
    assert len(set(answers.values())) == 3
    first, second = (ask(engine, **drawn) for _ in range(2))
    assert text(first) != text(second)
    assert text(ask(engine, **drawn, seed=first[-1].usage.seed)) == text(first)


def test_a_drawn_seed_is_one_that_cogs_command_line_takes(opened: Open) -> None:
    """32-bit signed numbers. A seed that is given may be larger."""
    engine = opened()
    seeds = [ask(engine, max_tokens=1)[-1].usage.seed for _ in range(20)]
    assert max(seeds) < 2**31 and len(set(seeds)) == 20
    assert ask(engine, max_tokens=1, seed=2**32 - 1)[-1].usage.seed == 2**32 - 1


def test_minus_one_is_off_as_in_replicates_templates(opened: Open) -> None:
    engine = opened()
    drawn = {"temperature": 1.0, "seed": 3}
    for off in ({"top_k": -1}, {"min_tokens": -1}, {"min_new_tokens": -1}):
        assert text(ask(engine, **drawn, **off)) == text(ask(engine, **drawn)), off


def test_a_seed_gives_the_same_answer_whatever_else_is_in_the_batch(opened: Open) -> None:
    mine = [
        {"prompt": prompt, "seed": seed, "adapter": adapter, "max_tokens": 60, **settings}
        for seed, (prompt, adapter, settings) in enumerate(
            [
                ("hay", "none", {"temperature": 1.0}),
                ("grass " * 60, "a", {"temperature": 0.8, "top_k": 40}),
                ("你好", "patterns", {"temperature": 1.2, "top_p": 0.9, "presence_penalty": 0.5}),
                ("hay " * 9, "dora", {"temperature": 1.0, "min_p": 0.02, "repetition_penalty": 1.1}),
            ]
        )
    ]
    alone = [text(ask(opened(concurrency=1), **request)) for request in mine]
    engine = opened(columns=48)

    def client(number: int) -> str:
        draw = random.Random(number)
        time.sleep(draw.random() * 0.3)
        if number < len(mine):
            return text(ask(engine, **mine[number]))
        words = "".join(draw.choice(WORDS) for _ in range(draw.choice([2, 90])))
        adapter, length = draw.choice(["none", "a", "b"]), draw.randint(1, 90)
        return text(ask(engine, words, temperature=1.0, adapter=adapter, max_tokens=length))

    assert in_threads(client, 24)[: len(mine)] == alone


def test_the_processes_own_random_numbers_are_left_alone(opened: Open) -> None:
    engine = opened()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    ask(engine, temperature=1.0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}, {"temperature": 1e-9}], ids=str)
def test_drawing_from_one_token_is_greedy(opened: Open, narrow: dict[str, float]) -> None:
    engine = opened()
    assert text(ask(engine, **{"temperature": 1.0, "seed": 3, **narrow})) == text(ask(engine))


# --- how it ends --------------------------------------------------------------------------------------------------
def test_length_is_an_ending_like_any_other(opened: Open) -> None:
    last = ask(opened(), max_tokens=5)[-1]
    assert (last.finish, last.usage.output_tokens) == (FinishReason.LENGTH, 5)
    assert 0 <= last.usage.queued < last.usage.first_token <= last.usage.total
    assert last.usage.batch_size == 1.0


def test_the_model_may_not_end_before_min_tokens(loaded: LoadedBase, opened: Open) -> None:
    prompt = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": "hay"}], add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    likeliest = int(loaded.model(prompt).logits[0, -1].argmax())
    loaded.model.generation_config.eos_token_id = [2, likeliest]
    engine = opened()
    at_once = ask(engine)
    assert (text(at_once), at_once[-1].finish, at_once[-1].usage.output_tokens) == ("", FinishReason.STOP, 0)
    assert ask(engine, min_tokens=6)[-1].usage.output_tokens >= 6


def test_all_the_ends_a_base_names_are_known(loaded: LoadedBase) -> None:
    loaded.model.generation_config.eos_token_id = [5, 7]
    assert end_ids(loaded.model, loaded.tokenizer) == (2, 5, 7)


def test_an_answer_ends_before_a_stop_sequence(opened: Open) -> None:
    engine = opened()
    whole = text(ask(engine, temperature=1.0, seed=2, max_tokens=60))
    stop = whole[len(whole) // 2 :][:3]
    chunks = ask(engine, temperature=1.0, seed=2, max_tokens=60, stop_sequences=f'["never", {json.dumps(stop)}]')
    assert text(chunks) == whole[: whole.index(stop)]
    assert chunks[-1].finish is FinishReason.STOP


def test_a_prompt_over_the_context_is_refused_with_both_numbers(opened: Open) -> None:
    engine = opened()
    with pytest.raises(PromptTooLong, match=r"E1002.* 3,\d{3} tokens.* 1,024") as caught:
        ask(engine, "你好" * 500)
    assert engine.stats().submitted == 0, caught.value


@pytest.mark.parametrize("context", [1024, 100])
def test_an_answer_ends_with_the_context(opened: Open, context: int) -> None:
    engine = opened(context=context)
    prompt = "你" * (330 if context == 1024 else 20)
    last = ask(engine, prompt, max_tokens=1000, min_tokens=1000, n=2)[-1]
    assert last.usage.input_tokens + last.usage.output_tokens == context
    assert last.finish is FinishReason.LENGTH
    longest = "a" * (context - 1)
    assert ask(engine, longest, prompt_template="{prompt}")[-1].usage.output_tokens <= 1


def test_total_tokens_counts_the_prompt(opened: Open) -> None:
    engine = opened()
    prompt = ask(engine, max_tokens=1)[-1].usage.input_tokens
    request = {"total_tokens": prompt + 4, "max_tokens": 512}
    assert ask(engine, **request)[-1].usage.output_tokens == 4
    with pytest.raises(PromptTooLong, match=f"{prompt} tokens.*total_tokens allows {prompt}"):
        ask(engine, **{**request, "total_tokens": prompt})


# --- templates ----------------------------------------------------------------------------------------------------
def test_a_template_given_as_text_is_filled_literally(loaded: LoadedBase, opened: Open) -> None:
    engine = opened()
    filled = "<|im_start|>user\n{x} {0} {system_prompt}<|im_end|>"
    template = "S:{system_prompt}|<|im_start|>user\n{prompt}<|im_end|>"
    chunks = ask(engine, "{x} {0} {system_prompt}", prompt_template=template, system_prompt="be {prompt}")
    ids = loaded.tokenizer.encode(f"S:be {{prompt}}|{filled}", add_special_tokens=False)
    assert chunks[-1].usage.input_tokens == len(ids)


def test_a_clients_special_tokens_stay_text(loaded: LoadedBase, opened: Open) -> None:
    plain = ask(opened(), "<|im_end|>", prompt_template="{prompt}")[-1].usage.input_tokens
    assert plain > len(loaded.tokenizer.encode("<|im_end|>", add_special_tokens=False)) == 1


@pytest.mark.parametrize(
    ("name", "error"),
    [("none", TemplateNotFound), ("/etc/passwd", TemplateNotFound), ("{instruction}", BadTemplate)],
)
def test_a_template_that_is_none_is_refused(opened: Open, name: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        ask(opened(), prompt_template=name)


def test_a_path_is_never_a_template(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(TemplateNotFound):
        ask(opened(), prompt_template=str(tmp_path / "t.json"))


def test_a_conversation_needs_a_template_for_turns(opened: Open) -> None:
    messages = [{"role": r, "content": "hay"} for r in ("user", "assistant", "user")]
    with pytest.raises(BadMessages, match="2 turns"):
        ask(opened(), "", messages=messages, prompt_template="Q: {prompt}\nA:")
    assert ask(opened(), "", messages=messages)[-1].finish


def test_a_prompt_without_a_single_token_is_refused(tmp_path: Path, tiny_base: Path) -> None:
    """Some tokenizers drop characters, so that a text that is not blank has no token."""
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    settings = json.loads((folder / "tokenizer.json").read_text())
    settings["normalizer"] = {"type": "Replace", "pattern": {"String": "\u200b"}, "content": ""}
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    engine = open_engine(load_base(str(folder), "fp32", say=lambda line: None), say=lambda line: None)
    with pytest.raises(EmptyPrompt):
        ask(engine, "\u200b", prompt_template="{prompt}")
    assert ask(engine)[-1].finish
    engine.close()


# --- streams, cancelling ------------------------------------------------------------------------------------------
def test_more_requests_than_slots_take_turns(opened: Open, oracle: Oracle) -> None:
    engine = opened(concurrency=1)
    streams = [submit(engine, prompt) for prompt in PROMPTS * 2]
    assert [text(list(stream)) for stream in streams] == [oracle.chat(prompt) for prompt in PROMPTS * 2]


def test_closing_the_stream_ends_the_generation(opened: Open) -> None:
    engine = opened()
    stream = long_request(engine, n=3)
    next(stream)
    stream.close()
    stream.close()
    wait_for(lambda: engine.stats().finished == {FinishReason.CANCELLED: 3})
    assert_all_is_free(engine)
    assert list(stream) == []
    assert ask(engine)[-1].finish


def test_cancelling_frees_the_slot_at_the_next_step(opened: Open) -> None:
    engine = opened(concurrency=1)
    first = long_request(engine)
    next(first)
    second = submit(engine, "something else")
    wait_for(lambda: engine.stats().waiting == 1)
    seen: list[int] = []
    forward = engine._decoder.forward

    def closing(step: Any, cache: Any) -> Any:
        seen.append(len(step.tokens))
        if len(seen) == 5:
            first.close()
        return forward(step, cache)

    engine._decoder.forward = closing  # type: ignore[method-assign]
    length = list(second)[-1].usage.input_tokens
    assert seen[:5] == [1] * 5
    assert seen[5] >= length


def test_a_request_cancelled_before_its_turn_costs_nothing(opened: Open) -> None:
    engine = opened(concurrency=1)
    first, second = long_request(engine), long_request(engine)
    second.close()
    next(first)
    first.close()
    assert ask(engine)[-1].finish
    assert engine.stats().finished[FinishReason.CANCELLED] == 2


def test_a_cancelled_answer_says_so_and_nothing_more(opened: Open) -> None:
    engine = opened()
    stream = long_request(engine, n=2)
    next(stream)
    stream.close()
    assert_all_is_free(engine)
    left = []
    while not stream._queue.empty():
        left.append(stream._queue.get_nowait())
    ends = [item for item in left if isinstance(item, Chunk) and item.finish]
    assert sorted((item.index, item.finish) for item in ends) == [(0, "cancelled"), (1, "cancelled")]
    assert left[-1] is None and left.count(None) == 1


def test_every_answer_has_one_terminal_chunk_and_it_is_the_last(opened: Open) -> None:
    chunks = ask(opened(), n=2, temperature=1.0)
    for index in (0, 1):
        mine = [chunk for chunk in chunks if chunk.index == index]
        assert [chunk.finish is not None for chunk in mine] == [False] * (len(mine) - 1) + [True]
        assert [chunk.usage is not None for chunk in mine] == [chunk.finish is not None for chunk in mine]


def test_asyncio_reads_the_same_chunks(opened: Open) -> None:
    engine = opened()
    request = request_from_inputs(prompt="hay", max_tokens=24, temperature=0.0)

    async def read() -> str:
        return "".join([chunk.text async for chunk in engine.submit(request)])

    async def read_both() -> list[str]:
        return list(await asyncio.gather(read(), read()))

    assert asyncio.run(read_both()) == [text(ask(engine))] * 2


def test_asyncio_cancels_by_closing(opened: Open) -> None:
    engine = opened()

    async def read_one() -> None:
        stream = long_request(engine)
        async for _ in stream:
            break
        await stream.aclose()

    asyncio.run(read_one())
    wait_for(lambda: engine.stats().finished == {FinishReason.CANCELLED: 1})


# --- the queue ----------------------------------------------------------------------------------------------------
def order_of_turns(engine: Engine) -> list[int]:
    """The lengths that answers take room for, filled in as their turns come."""
    lengths, take = [], engine._slots.take

    def record(key: Any, prompt: list[int], length: int) -> Any:
        lengths.append(length)
        return take(key, prompt, length)

    engine._slots.take = record  # type: ignore[method-assign]
    return lengths


def test_nobody_goes_past_one_that_waits_for_room(opened: Open, oracle: Oracle) -> None:
    engine = small(opened)
    turns = order_of_turns(engine)
    running = submit(engine, "a", max_tokens=190, min_tokens=190, **PLAIN)
    next(running)
    long, short = (submit(engine, "a", max_tokens=length, **PLAIN) for length in (250, 20))
    assert text(list(short)) == oracle.text("a", max_tokens=20)
    assert text(list(long)) == oracle.text("a", max_tokens=250)
    assert turns == [191, 251, 21]
    assert list(running)[-1].finish is FinishReason.LENGTH


def test_turns_come_in_order_whatever_is_asked_for_and_answers_are_right(opened: Open, oracle: Oracle) -> None:
    engine, draw = small(opened, concurrency=3), random.Random(3)
    turns = order_of_turns(engine)
    asked = [(draw.choice(["a", "hay and grass ", "你好" * 9]), draw.choice([1, 30, 100, 200])) for _ in range(30)]
    streams = [submit(engine, prompt, max_tokens=length, **PLAIN) for prompt, length in asked]
    for (prompt, length), stream in zip(asked, streams, strict=True):
        assert text(list(stream)) == oracle.text(prompt, max_tokens=length)
    counts = [len(oracle.tokenizer.encode(prompt, add_special_tokens=False)) for prompt, _ in asked]
    assert turns == [count + length for count, (_, length) in zip(counts, asked, strict=True)]
    assert_all_is_free(engine, 3)


def test_one_that_gives_up_waiting_for_room_lets_the_next_in_at_once(opened: Open, oracle: Oracle) -> None:
    engine = small(opened)
    running = submit(engine, "a", max_tokens=250, min_tokens=250, **PLAIN)
    next(running)
    long = submit(engine, "a", max_tokens=250, **PLAIN)
    short = submit(engine, "hay", max_tokens=20, **PLAIN)
    wait_for(lambda: engine.stats().waiting == 2)
    long.close()
    assert text(list(short)) == oracle.text("hay", max_tokens=20)
    assert engine.stats().running == 1, "the first is still at it"
    running.close()
    assert_all_is_free(engine, 5)


@pytest.mark.parametrize("limits", [{"concurrency": 1}, {"concurrency": 8}], ids=["no place", "no room"])
def test_a_request_waits_for_its_turn_no_longer_than_it_may(opened: Open, limits: dict[str, int]) -> None:
    engine = small(opened, patience=0.001, **limits)
    running = submit(engine, "a", max_tokens=300, min_tokens=300, **PLAIN)
    next(running)
    waiting = submit(engine, "a", n=3)
    with pytest.raises(NoTurn, match=r"E1105 NoTurn: .*0.001 s \(answers being made: 1, waiting: 3\); ask again later"):
        list(waiting)
    assert list(running)[-1].finish is FinishReason.LENGTH
    assert engine.stats().finished == {FinishReason.FAILED: 3, FinishReason.LENGTH: 1}
    assert_all_is_free(engine, min(limits["concurrency"], 5))


def test_a_request_whose_turn_has_come_is_not_refused(opened: Open, oracle: Oracle) -> None:
    """Its first answer runs, and the others wait for that alone."""
    chunks = ask(opened(concurrency=1, patience=0.001), n=5)
    assert {text(chunks, index) for index in range(5)} == {oracle.chat("hay")}


def test_the_time_in_the_queue_is_told(opened: Open) -> None:
    engine = opened(concurrency=1)
    first, second = (submit(engine, max_tokens=60, min_tokens=60) for _ in range(2))
    before, after = list(first)[-1].usage, list(second)[-1].usage
    assert before.queued < before.first_token
    assert before.queued < after.queued < after.first_token


# --- failing ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("trouble", ["CUDA out of memory. Tried to allocate 2 GiB", "something else"])
def test_a_step_that_fails_harms_no_later_request(opened: Open, trouble: str) -> None:
    engine = opened()
    before = text(ask(engine))
    fail_once(engine, RuntimeError(trouble))
    with pytest.raises(GenerationFailed, match=f"^E1101 GenerationFailed: .*{re.escape(trouble)}"):
        ask(engine)
    again = ask(engine)
    assert text(again) == before
    assert engine.alive
    assert engine.stats().finished[FinishReason.FAILED] == 1
    assert_all_is_free(engine)


def test_a_step_that_fails_ends_its_requests_and_no_others(opened: Open, oracle: Oracle) -> None:
    engine = opened()
    decoding = long_request(engine, n=2, adapter="a")
    wait_for(lambda: len(engine._running) == 2)
    long, newcomers = "grass and hay " * 120, []
    forward = engine._decoder.forward

    def play(step: Any, cache: Any) -> Any:
        """While the first chunk of the long prompt is computed a short one comes; the step that takes it fails."""
        if newcomers:
            engine._decoder.forward = forward  # type: ignore[method-assign]
            raise RuntimeError("no")
        if len(engine._running) == 3:
            newcomers.append(submit(engine, "hay"))
        return forward(step, cache)

    engine._decoder.forward = play  # type: ignore[method-assign]
    prefilling = submit(engine, long, adapter="b")
    assert text(list(prefilling)) == oracle.chat(long, "b")
    for stream in (decoding, *newcomers):
        with pytest.raises(GenerationFailed):
            list(stream)
    assert engine.stats().finished[FinishReason.FAILED] == 3
    assert_all_is_free(engine)


def test_nothing_of_a_failed_step_is_used_again(opened: Open, oracle: Oracle) -> None:
    engine, prompt = opened(concurrency=1), "grass and hay " * 30
    forward = engine._decoder.forward

    def spoil(step: Any, cache: Any) -> Any:
        engine._decoder.forward = forward  # type: ignore[method-assign]
        forward(step, cache)
        for memory in cache.keys:
            memory.normal_()
        raise RuntimeError("half way")

    engine._decoder.forward = spoil  # type: ignore[method-assign]
    with pytest.raises(GenerationFailed):
        ask(engine, prompt)
    chunks = ask(engine, prompt)
    assert reused(chunks) == [0]
    assert text(chunks) == oracle.chat(prompt)


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.9, "top_k": 5}], ids=str
)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_no_numbers_raise_nothing(opened: Open, settings: dict[str, float], value: float) -> None:
    engine = opened()
    forward = engine._decoder.forward
    engine._decoder.forward = lambda *args: forward(*args) * value  # type: ignore[method-assign]
    others = {"repetition_penalty": 1.2, "presence_penalty": 0.5, "min_tokens": 3}
    assert ask(engine, **settings)[-1].finish
    assert ask(engine, **settings, **others)[-1].finish
    engine._decoder.forward = forward  # type: ignore[method-assign]
    assert engine.alive


def test_a_dead_engine_says_so(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda *args: None)
    engine = opened(concurrency=1)
    running, waiting = long_request(engine), long_request(engine)
    next(running)
    fail_once(engine, SystemExit())
    for stream in (waiting, running):
        with pytest.raises(EngineStopped):
            list(stream)
    wait_for(lambda: not engine.alive)
    with pytest.raises(EngineStopped):
        ask(engine)


def test_closing_the_engine_ends_what_runs_and_refuses_what_waits(opened: Open) -> None:
    engine = opened(concurrency=1)
    running, waiting = long_request(engine), long_request(engine)
    next(running)
    engine.close()
    assert not engine.alive
    assert list(running)[-1].finish is FinishReason.CANCELLED
    with pytest.raises(EngineStopped):
        list(waiting)
    with pytest.raises(EngineStopped):
        ask(engine)
    engine.close()


# --- many at once -------------------------------------------------------------------------------------------------
def test_thousands_of_quick_requests_and_cancels_leave_nothing_behind(opened: Open) -> None:
    engine = opened(columns=16)

    def client(number: int) -> int:
        draw, count = random.Random(number), 0
        for _ in range(125):
            stream = submit(
                engine, "hay", max_tokens=draw.randint(1, 3), n=draw.choice([1, 1, 2]),
                adapter=draw.choice(["none", "none", "none", "a", "b"]),
            )  # fmt: skip
            if draw.random() < 0.85:
                stream.close()
            else:
                count += sum(chunk.finish is not None for chunk in stream)
        return count

    read_to_the_end = sum(in_threads(client, 16))
    assert_all_is_free(engine)
    stats = engine.stats()
    assert stats.submitted == 2000
    assert stats.finished.get(FinishReason.FAILED, 0) == 0
    ended = sum(count for reason, count in stats.finished.items() if reason is not FinishReason.CANCELLED)
    assert 0 < read_to_the_end <= ended


def test_every_reader_ends_when_the_engine_is_closed_under_load(opened: Open) -> None:
    for _ in range(5):
        engine = opened(concurrency=2)
        how: list[str] = []

        def client(number: int, engine: Engine = engine, how: list[str] = how) -> None:
            while True:
                try:
                    chunks = ask(engine, "hay", max_tokens=3, n=1 + number % 2, adapter=["none", "a"][number % 2])
                    how.append("answered")
                    assert [chunk.finish for chunk in chunks if chunk.finish]
                except EngineStopped:
                    return

        threads = [threading.Thread(target=client, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        wait_for(lambda how=how: len(how) > 5)  # type: ignore[misc]
        engine.close()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert engine._slots.free == 2
