"""Several adapters make one answer as PEFT's weighted adapter does, beside others, and wait for room together."""

from __future__ import annotations

import json
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from alpaca.adapter.archive import pack
from alpaca.errors import AdapterNotFound, AlpacaError, BadAdapter, BadComposition, NoRoom
from alpaca.serving import placement
from alpaca.serving.download import ALLOWED_HOSTS
from alpaca.serving.engine import Engine
from alpaca.serving.inputs import request_from_inputs
from alpaca.serving.limits import EngineLimits
from alpaca.serving.loading import load_base, open_engine
from alpaca.serving.stream import Chunk, Stream
from tests.serving.hostile.hosts import running_host
from tests.serving.oracle import Oracle
from tests.serving.peft_adapters import EVERY_KIND, HEAD, edit_config, make_adapter, make_adapters

PROMPTS = ["hay", "Tell me about the alpaca.", "你好 🦙 " * 20]
COMPOSITIONS = ["a:0.7+b:0.5", "b:0.25+a:1.5", "a:0.5+patterns:0.7+b:2", "a+patterns:0.3"]
Open = Callable[..., Engine]


@pytest.fixture(scope="module")
def roots(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of ranks 4, 16, 24 and 4; those with a card are called after their template."""
    folder = make_adapters(tiny_base, tmp_path_factory.mktemp("adapters"), EVERY_KIND)
    for seed, template in enumerate(("alpaca", "alpaca_short", "chat"), 11):
        make_adapter(tiny_base, folder / f"with-{template}", seed=seed, template=template)
    return folder


@pytest.fixture(scope="module")
def oracle(tiny_base: Path, roots: Path) -> Oracle:
    return Oracle(tiny_base, roots)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def opened(tiny_base: Path, roots: Path, said: list[str]) -> Iterator[Open]:
    """Opens an engine on the tiny base, and closes it."""
    engines: list[Engine] = []

    def open_one(**limits: Any) -> Engine:
        base = load_base(str(tiny_base), "fp32", say=said.append)
        engines.append(open_engine(base, limits=EngineLimits(**{"roots": (roots,), **limits}), say=said.append))
        return engines[-1]

    yield open_one
    for engine in engines:
        engine.close()


def submit(engine: Engine, adapter: str | list[dict[str, Any]], prompt: str = "hay", **inputs: Any) -> Stream:
    named = adapter if isinstance(adapter, str) else json.dumps(adapter)
    settings = {"max_tokens": 24, "temperature": 0.0, **inputs}
    return engine.submit(request_from_inputs(prompt=prompt, adapter=named, **settings))


def ask(engine: Engine, adapter: str | list[dict[str, Any]], prompt: str = "hay", **inputs: Any) -> str:
    return text(list(submit(engine, adapter, prompt, **inputs)))


def text(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def reused(engine: Engine, adapter: str, prompt: str, **inputs: Any) -> tuple[int, int]:
    """How many tokens of the prompt were there already, and of how many."""
    usage = list(submit(engine, adapter, prompt, **inputs))[-1].usage
    assert usage is not None
    return usage.reused_tokens, usage.input_tokens


def long_request(engine: Engine, adapter: str) -> Stream:
    """One that runs: its first token is there."""
    stream = submit(engine, adapter, max_tokens=900, min_tokens=900)
    next(stream)
    return stream


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def assert_nothing_is_held(engine: Engine) -> None:
    def free() -> bool:
        stats = engine.stats()
        return not (stats.running or stats.waiting or stats.pinned or len(engine._reader))

    wait_for(free)


# --- answers ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_answers_are_those_of_pefts_weighted_adapter(oracle: Oracle, opened: Open, composition: str) -> None:
    engine = opened()
    for prompt in PROMPTS:
        for scale in (1.0, 0.5):
            expected = oracle.chat(prompt, composition, scale=scale)
            assert ask(engine, composition, prompt, adapter_scale=scale) == expected, (prompt, scale)
        assert ask(engine, composition, prompt, adapter_scale=0.0) == oracle.chat(prompt)


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_the_oracle_computes_the_sum_of_what_each_changes(oracle: Oracle, composition: str) -> None:
    """What is expected above is also what the base computes once all adapters are merged into it."""
    ids = torch.tensor([oracle.tokenizer.encode("grass and hay", add_special_tokens=False)])
    with torch.inference_mode():
        weighted, merged = oracle.model(composition)(ids).logits, oracle.merged(composition)(ids).logits
        alone = oracle.model("a")(ids).logits
    assert (weighted - merged).abs().max() < 1e-4 * merged.abs().max() < (weighted - alone).abs().max()


def test_one_name_with_a_strength_is_that_adapter_at_that_strength(oracle: Oracle, opened: Open) -> None:
    engine = opened()
    for scale in (0.5, 3.0):
        assert ask(engine, f"a:{scale}") == oracle.chat("hay", "a", scale=scale)
    assert ask(engine, "a:2", adapter_scale=0.25) == oracle.chat("hay", "a", scale=0.5)
    assert ask(engine, "dora:1") == oracle.chat("hay", "dora")
    assert ask(engine, "a:0") == oracle.chat("hay")


@pytest.mark.long
@pytest.mark.parametrize("heads", ["grouped-query, tied", "multi-head, untied"])
def test_mixed_compositions_that_come_and_go_at_random_get_the_answers_of_peft(
    tiny_base: Path, tiny_mha_base: Path, roots: Path, tmp_path: Path, heads: str
) -> None:
    base, folder, names = tiny_base, roots, ["none", "dora", "b", *COMPOSITIONS]
    if heads == "multi-head, untied":
        base, folder = tiny_mha_base, make_adapters(tiny_mha_base, tmp_path, {**EVERY_KIND, "head": HEAD})
        names += ["a:0.5+head:0.7", "head+b:0.3"]
    oracle, draw = Oracle(base, folder), random.Random(1)
    asked = [
        {"adapter": draw.choice(names), "prompt": "grass and hay " * draw.choice([1, 9, 60]) + str(number % 5),
         "max_tokens": draw.randint(1, 40)}
        for number in range(30)
    ]  # fmt: skip
    # room for the largest composition alone, so that they take turns
    limits = EngineLimits(columns=64, roots=(folder,))
    engine = open_engine(load_base(str(base), "fp32", say=lambda line: None), limits=limits, say=lambda line: None)
    with ThreadPoolExecutor(len(asked)) as clients:
        got = list(clients.map(lambda inputs: ask(engine, **inputs, prompt_template="{prompt}"), asked))
    assert got == [oracle.text(**inputs) for inputs in asked]
    assert_nothing_is_held(engine)
    engine.close()


def test_a_name_that_holds_a_plus_or_a_colon_is_reached_by_a_list(
    tiny_base: Path, roots: Path, opened: Open, oracle: Oracle, tmp_path: Path
) -> None:
    shutil.copytree(roots / "a", tmp_path / "c++:2")
    engine = opened(roots=(roots, tmp_path))
    assert ask(engine, [{"name": "c++:2"}]) == oracle.chat("hay", "a")
    both = [{"name": "c++:2", "scale": 0.7}, {"name": "b", "scale": 0.5}]
    assert ask(engine, both) == oracle.chat("hay", "a:0.7+b:0.5")


def test_a_list_may_mix_names_and_urls(
    roots: Path, opened: Open, oracle: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ALLOWED_HOSTS, "127.0.0.1")
    monkeypatch.setenv("ALPACA_CACHE", str(tmp_path / "cache"))
    with running_host(b=pack(roots / "b", tmp_path / "b.zip").read_bytes()) as host:
        composition = [{"name": "a", "scale": 0.7}, {"url": host.url("b"), "scale": 0.5}]
        assert ask(opened(), composition) == oracle.chat("hay", "a:0.7+b:0.5")


# --- templates ----------------------------------------------------------------------------------------------------
def test_templates_that_differ_are_named_unless_the_request_says_which(opened: Open, oracle: Oracle) -> None:
    engine = opened()
    with pytest.raises(BadComposition) as caught:
        submit(engine, "with-alpaca+a+with-chat:0.5")
    assert str(caught.value) == (
        "E1006 BadComposition: with-alpaca was trained with the template alpaca, and with-chat with another, chat: say "
        "which to use in prompt_template"
    )
    both = "with-alpaca+with-chat:0.5"
    assert ask(engine, both, prompt_template="chat") == oracle.chat("hay", both)


def test_the_template_that_all_share_is_used(tiny_base: Path, opened: Open, roots: Path, tmp_path: Path) -> None:
    make_adapter(tiny_base, tmp_path / "second", seed=5, template="alpaca_short")
    engine = opened(roots=(roots, tmp_path))

    def length(adapter: str, **inputs: Any) -> int:
        return reused(engine, adapter, "hay", max_tokens=1, **inputs)[1]

    short = length("none", prompt_template="alpaca_short")
    assert length("with-alpaca_short+second") == length("a+with-alpaca_short") == short != length("a+b")
    assert length("a+b") == length("none")


# --- what can't be served -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("composition", "error", "says"),
    [
        ("a:0.7+nowhere:0.5", AdapterNotFound, "no adapter 'nowhere'"),
        ("a+dora", BadComposition, "dora is a DoRA adapter, which answers alone"),
        ("dora:0.5", BadAdapter, "adapter_scale must be 0 or 1"),
        ("a+./a:0.5", BadComposition, "a and ./a are the same adapter: name it once"),
        ("a+b+patterns", BadComposition, "a has rank 4, b has rank 16 and patterns has rank 24: in steps of 16 they "),
    ],
)  # fmt: skip
def test_what_can_not_make_an_answer_together_is_refused_at_once(
    opened: Open, composition: str, error: type[AlpacaError], says: str
) -> None:
    engine = opened(columns=48)
    with pytest.raises(error) as caught:
        submit(engine, composition)
    assert says in str(caught.value)
    assert engine.stats().submitted == 0


def test_eight_make_an_answer_together(tiny_base: Path, tmp_path: Path, opened: Open) -> None:
    kinds: dict[str, dict[str, Any]] = {name: {"r": 2, "target_modules": ["q_proj"]} for name in "abcdefgh"}
    oracle = Oracle(tiny_base, make_adapters(tiny_base, tmp_path, kinds))
    composition = "+".join(f"{name}:0.{number}" for number, name in enumerate(kinds, 1))
    assert ask(opened(roots=(tmp_path,)), composition) == oracle.chat("hay", composition) != oracle.chat("hay", "a")


def test_an_adapter_that_can_not_be_read_fails_the_answer_by_its_name_and_the_others_stay_of_use(
    opened: Open, roots: Path, oracle: Oracle, tmp_path: Path
) -> None:
    shutil.copytree(roots / "b", tmp_path / "brittle")
    engine, harmful = opened(roots=(roots, tmp_path)), threading.Event()
    engine._reader.thread.submit(harmful.wait, 60)  # holds the reader back until the harm is done
    broken, whole = submit(engine, "a+brittle"), submit(engine, "a:0.7+b:0.5")
    edit_config(tmp_path / "brittle", lora_alpha=1)
    harmful.set()
    with pytest.raises(AlpacaError, match="brittle"):
        list(broken)
    assert text(list(whole)) == oracle.chat("hay", "a:0.7+b:0.5")
    assert_nothing_is_held(engine)


# --- what is in the cache already ---------------------------------------------------------------------------------
def test_a_prompt_is_computed_anew_for_another_composition_or_strength(opened: Open, oracle: Oracle) -> None:
    engine, prompt = opened(concurrency=16), "grass and hay " * 30
    asked = ["none", "a", "b", "a:0.7+b:0.5", "a:0.5+b:0.7", "a+b", "a:0.7+b:0.5+patterns:0.1"]
    for _ in range(2):
        for composition in asked:
            assert ask(engine, composition, prompt) == oracle.chat(prompt, composition)
    fresh = opened(concurrency=16)
    assert [reused(fresh, composition, prompt)[0] for composition in asked] == [0] * len(asked)
    for composition in asked:
        found, length = reused(fresh, composition, prompt)
        assert found == length - 1, composition


def test_the_same_composition_written_in_another_way_is_known(opened: Open) -> None:
    engine, prompt = opened(), "grass and hay " * 30
    assert reused(engine, "a:0.5+b", prompt)[0] == 0
    listed = json.dumps([{"name": "./b", "scale": 2}, {"name": "a", "scale": 1}])
    for composition, scale in (("b+a:0.5", 1.0), ("a+b:2", 0.5), (listed, 0.5), ("patterns:0+a:0.5+b", 1.0)):
        found, length = reused(engine, composition, prompt, adapter_scale=scale)
        assert found == length - 1, composition


# --- adapters in memory -------------------------------------------------------------------------------------------
def test_each_is_read_once_however_many_compositions_wait_for_it(opened: Open, said: list[str]) -> None:
    engine, begin = opened(), threading.Event()
    engine._reader.thread.submit(begin.wait, 60)
    streams = [submit(engine, name) for name in ("a+b", "b:0.5+a", "b+patterns", "patterns", "a+b+patterns")]
    wait_for(lambda: engine.stats().waiting == len(streams))
    begin.set()
    for stream in streams:
        list(stream)
    assert sorted(line.split()[1] for line in said if " changes " in line) == ["a", "b", "patterns"]
    assert engine.stats().loads == 3
    assert_nothing_is_held(engine)


def test_those_that_are_there_make_no_room_for_those_that_are_not(opened: Open, oracle: Oracle) -> None:
    engine = opened(columns=48)
    ask(engine, "a")
    ask(engine, "patterns")  # used later than a, and all the same it is the one to go
    assert ask(engine, "a:0.7+b:0.5") == oracle.chat("hay", "a:0.7+b:0.5")
    assert (engine.stats().loads, engine.stats().adapters) == (3, 2)
    assert ask(engine, "a:0.7+b:0.5", "more") == oracle.chat("more", "a:0.7+b:0.5")
    ask(engine, "with-chat+b+a")
    assert (engine.stats().loads, engine.stats().adapters) == (4, 3)


def test_one_that_waits_for_room_holds_nothing(opened: Open, oracle: Oracle) -> None:
    engine = opened(columns=48)
    first = long_request(engine, "a+b")
    waiting = submit(engine, "a:0.3+patterns:0.5")
    wait_for(lambda: len(engine._reader) == 1)
    steps = engine.stats().steps
    wait_for(lambda: engine.stats().steps > steps + 20)
    assert (engine.stats().waiting, engine.stats().pinned, engine.stats().loads) == (1, 2, 2)
    for name in ("none", "a", "b:0.5", "b:0.5+a:0.7"):  # what is there may be used meanwhile
        assert ask(engine, name) == oracle.chat("hay", name)
    first.close()
    assert text(list(waiting)) == oracle.chat("hay", "a:0.3+patterns:0.5")
    assert_nothing_is_held(engine)


def test_compositions_that_need_each_others_room_all_have_their_turn(opened: Open, oracle: Oracle) -> None:
    """Each takes two of three places and shares one with every other, so no two ever fit together."""
    engine = opened(columns=48)
    around = ["a:0.5+b:0.5", "b+with-chat", "with-chat:0.5+a"]
    expected = {name: ask(engine, name, prompt_template="chat") for name in around}
    assert expected["a:0.5+b:0.5"] == oracle.chat("hay", "a:0.5+b:0.5")

    def client(number: int) -> bool:
        names = [around[(number + turn) % 3] for turn in range(6)]
        return all(ask(engine, name, prompt_template="chat") == expected[name] for name in names)

    with ThreadPoolExecutor(6) as clients:
        assert all(clients.map(client, range(6)))
    assert_nothing_is_held(engine)


def test_a_composition_that_waits_is_not_passed_over_for_ever(opened: Open, oracle: Oracle) -> None:
    """Clients of each half submit their next request while the one before runs, so that one is always in use."""
    engine = opened(columns=32)
    streams = [submit(engine, name, max_tokens=60, min_tokens=60) for name in ("a", "with-chat")]
    for stream in streams:
        next(stream)
    waiting, answered = submit(engine, "a:0.7+b:0.5"), threading.Event()

    def client(name: str) -> int:
        count, running = 0, submit(engine, name, max_tokens=30, min_tokens=30)
        while not answered.is_set():
            for _ in range(10):
                next(running, None)
            following = submit(engine, name, max_tokens=30, min_tokens=30)
            list(running)
            count, running = count + 1, following
        return count

    with ThreadPoolExecutor(2) as pool:
        clients = [pool.submit(client, name) for name in ("a", "with-chat")]
        try:
            assert text(list(waiting)) == oracle.chat("hay", "a:0.7+b:0.5")
        finally:
            answered.set()
    assert all(done.result() for done in clients)
    assert_nothing_is_held(engine)


def test_a_composition_does_not_wait_for_room_for_ever(
    opened: Open, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "PATIENCE", 0.2)
    engine = opened(columns=32)
    first = long_request(engine, "a")
    with pytest.raises(NoRoom, match="E1104"):
        ask(engine, "b+with-chat", n=2)
    assert next(first).finish is None
    assert engine.stats().pinned == 1
    first.close()
    assert ask(engine, "b+with-chat") == oracle.chat("hay", "b+with-chat")
    assert_nothing_is_held(engine)


def test_cancelled_while_its_adapters_are_read_it_leaves_nothing(opened: Open, oracle: Oracle) -> None:
    engine, reading = opened(), threading.Event()
    engine._reader.thread.submit(reading.wait, 60)
    stream = submit(engine, "a+b+patterns", n=3)
    wait_for(lambda: len(engine._reader) == 3)
    stream.close()
    reading.set()
    assert ask(engine, "none") == oracle.chat("hay")
    assert_nothing_is_held(engine)
