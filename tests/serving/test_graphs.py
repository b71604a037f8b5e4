"""Steps of fixed shapes give the answers of the plain way, in every mixture; here one operation at a time, on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from alpaca.base.load import load_model
from alpaca.prompts.example import Example
from alpaca.serving import graphs
from alpaca.serving.cache import CachePlan, KeyValueCache
from alpaca.serving.decoder import Decoder
from alpaca.serving.engine import Engine
from alpaca.serving.graphs import Graphs, Shape
from alpaca.serving.inputs import request_from_inputs
from alpaca.serving.limits import EngineLimits
from alpaca.serving.loading import load_base, open_engine
from alpaca.serving.lora import Place
from alpaca.serving.request import GenerationRequest
from alpaca.serving.sampling import Sampler, choose
from alpaca.serving.slots import BLOCK
from alpaca.serving.step import Parts, build_step
from alpaca.serving.together import answers
from tests.serving.by_hand import COLUMNS, decoding, place
from tests.serving.oracle import Oracle
from tests.serving.peft_adapters import EVERY_KIND, make_adapters


class Pool:
    """A decoder with graphs, and a pool of keys and values that are as random as those of a real prompt."""

    def __init__(self, base: Path, precision: str = "fp32", *, capture: bool = False) -> None:
        self.decoder = Decoder(load_model(base, precision), COLUMNS, 1024)
        plan = CachePlan(64 * BLOCK, 1024, 8, 0, "")
        self.cache = KeyValueCache(self.decoder.model.config, plan, self.decoder.dtype, self.decoder.device)
        for number, memory in enumerate((*self.cache.keys, *self.cache.values)):
            memory.normal_(generator=torch.Generator().manual_seed(number))
        for projection in {id(p): p for p, _ in self.decoder.projections.values()}.values():
            for matrix in (projection.down, projection.up):
                matrix.normal_(0.0, 0.05, generator=torch.Generator().manual_seed(len(matrix)))
        self.said: list[str] = []
        self.graphs = Graphs(self.decoder, self.cache, 8, capture=capture, say=self.said.append)

    def parts(self, *rows: tuple[int, int, list[tuple[Place, float]]]) -> Parts:
        """Answers that decode: (first block of the range, tokens so far, adapters)."""
        return [(decoding(block * BLOCK, length, used), 1) for block, length, used in rows]

    def both(self, parts: Parts) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Logits by the graphs and the plain way, and what the graphs changed in the pool beyond the plain way."""
        before = [memory.clone() for memory in (*self.cache.keys, *self.cache.values)]
        with torch.inference_mode():
            fixed = self.graphs.forward(parts)
            assert fixed is not None
            fixed = fixed.clone()
            after = [memory.clone() for memory in (*self.cache.keys, *self.cache.values)]
            for memory, old in zip((*self.cache.keys, *self.cache.values), before, strict=True):
                memory.copy_(old)
            step, ordered = build_step(parts, self.decoder)
            plain = self.decoder.forward(step, self.cache)
        order = [ordered.index(part) for part in parts]
        differs = [new - memory for new, memory in zip(after, (*self.cache.keys, *self.cache.values), strict=True)]
        return fixed, plain[order], differs


A, B = place(0, 16), place(48, 80)
MIXTURES: dict[str, list[tuple[int, int, list[tuple[Place, float]]]]] = {
    "alone": [(0, 9, [])],
    "alone with an adapter": [(2, 64, [(B, 0.5)])],
    "three, filled up to four, the last ranges first": [(40, 65, []), (20, 7, []), (3, 1, [])],
    "adapters, a composition and none, of all lengths": [
        (0, 1, [(A, 1.0)]), (5, 700, [(B, 2.0)]), (20, 256, []), (30, 257, [(A, 0.7), (B, -0.5)]), (39, 64, [(A, 0.0)]),
    ],
}  # fmt: skip


@pytest.fixture(scope="module", params=["tied", "untied"])
def base(request: pytest.FixtureRequest, tiny_base: Path, tiny_mha_base: Path) -> Path:
    return tiny_base if request.param == "tied" else tiny_mha_base


@pytest.mark.parametrize("mixture", list(MIXTURES))
def test_a_step_of_fixed_shape_gives_the_logits_and_the_cache_of_a_plain_one(base: Path, mixture: str) -> None:
    pool = Pool(base)
    fixed, plain, differs = pool.both(pool.parts(*MIXTURES[mixture]))
    torch.testing.assert_close(fixed, plain, atol=1e-4, rtol=1e-4)
    assert max(float(change.abs().max()) for change in differs) < 1e-5, "it wrote elsewhere, or something else"


def test_inputs_of_the_step_before_leave_nothing_behind(base: Path) -> None:
    pool = Pool(base)
    for mixture in (
        "adapters, a composition and none, of all lengths",
        "three, filled up to four, the last ranges first",
    ):
        rows = [*MIXTURES[mixture], *[(50 + n, 30, []) for n in range(8 - len(MIXTURES[mixture]))]]
        fixed, plain, _ = pool.both(pool.parts(*rows))
        torch.testing.assert_close(fixed, plain, atol=1e-4, rtol=1e-4)
    assert pool.graphs.replayed == 2


def test_in_bf16_it_is_as_near_as_rounding_allows(base: Path) -> None:
    pool = Pool(base, "bf16")
    fixed, plain, _ = pool.both(pool.parts(*MIXTURES["adapters, a composition and none, of all lengths"]))
    assert float((fixed - plain).norm() / plain.norm()) < 0.03


def test_shapes_are_few(tiny_base: Path) -> None:
    pool = Pool(tiny_base)
    shapes = {
        pool.graphs._shape(pool.parts(*[(n, length, used) for n in range(count)]))
        for count in range(1, 9) for length in (1, 255, 256, 257, 512) for used in ([], [(A, 1.0)], [(B, 1.0)])
    }  # fmt: skip
    assert shapes == {Shape(r, n, w) for r in (1, 2, 4, 8) for n in (256, 512) for w in (0, 16, COLUMNS)}


def test_what_no_graph_is_for_is_left_to_the_plain_way(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(tiny_base)
    plain = pool.parts((0, 9, []), (1, 9, []))
    (first, _), second = plain
    cases: list[Parts] = [
        pool.parts((0, 9, [(place(0, 16, dora=True), 1.0)])),
        pool.parts(*[(n, 9, []) for n in range(9)]),
        [(replace(first, computed=4, slot=first.slot), 5), second],
        [(replace(first, computed=4, slot=first.slot), 1), second],
    ]
    for parts in cases:
        assert pool.graphs.forward(parts) is None
    monkeypatch.setattr(graphs, "MOST_GATHERED", 2 * 256 * 2 * 2 * 16 * 4 - 1)  # rows, length, both, heads, size, fp32
    assert pool.graphs.forward(plain) is None and pool.graphs.replayed == 0
    assert pool.graphs.forward(plain[:1]) is not None
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 1)
    monkeypatch.setattr(graphs, "MOST_GATHERED", 1e9)
    assert pool.graphs.forward(plain) is None
    assert pool.graphs.forward(plain[:1]) is not None and pool.graphs.replayed == 2 and not pool.said


def test_a_capture_that_fails_is_said_once_and_the_plain_way_goes_on(tiny_base: Path) -> None:
    """There is nothing to capture for a base on a CPU, so trying to fails."""
    pool = Pool(tiny_base, capture=True)
    parts = pool.parts((0, 9, []))
    assert pool.graphs.forward(parts) is None and pool.graphs.forward(parts) is None
    assert len(pool.said) == 1 and pool.said[0].startswith("graphs: none from now on, a step could not be captured (")
    assert pool.graphs.replayed == 0


# --- waiting ------------------------------------------------------------------------------------------------------
class Asked(TorchDispatchMode):
    """Notes operations that a GPU would have to be waited for: they need values, or give as much as they find."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put_", "index_put", "_unsafe_index") else []
        masks = [index for index in indices if index is not None and index.dtype == torch.bool]
        if masks or name in (
            "_local_scalar_dense",
            "item",
            "nonzero",
            "masked_select",
            "equal",
            "is_nonzero",
            "unique",
        ):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_asking_for_values_is_noticed() -> None:
    numbers = torch.arange(4.0)
    with Asked() as asked:
        numbers[numbers > 2] = 0
        numbers.nonzero()
        bool(numbers[0] > 1)
    assert {"index_put_", "nonzero", "_local_scalar_dense"} <= set(asked.found)


@pytest.mark.parametrize("fixed", [True, False], ids=["fixed shapes", "plain"])
def test_no_operation_of_a_step_asks_for_values(base: Path, fixed: bool) -> None:
    """But for the one that reads the chosen tokens: on a CPU that is no operation."""
    pool = Pool(base)
    parts = pool.parts(*MIXTURES["adapters, a composition and none, of all lengths"])
    if not fixed:  # a chunk of a prompt beside them
        answer = decoding(50 * BLOCK, 40, [(place(0, 16, dora=True), 1.0)])
        parts.append((replace(answer, computed=10), 30))
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0}, {"temperature": 1.0, "top_k": 40}, {"temperature": 0.7, "repetition_penalty": 1.2},
        {"temperature": 1.0, "top_p": 1.0, "presence_penalty": 0.5, "min_tokens": 3}, {"min_p": 0.1}, {"top_k": 9},
    ]  # fmt: skip
    requests = [GenerationRequest(Example.single("hay"), **kind) for kind in kinds[: len(parts)]]
    samplers = [Sampler(request, [5, 6, 6], seed=n, eos_ids=[2]) for n, request in enumerate(requests)]
    with torch.inference_mode(), Asked() as asked:
        logits = pool.graphs.forward(parts) if fixed else None
        if logits is None:
            logits = pool.decoder.forward(build_step(parts, pool.decoder)[0], pool.cache)
        choose(logits, samplers)
    assert asked.count > 100 and not asked.found


# --- the whole engine ---------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def roots(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapters(tiny_base, tmp_path_factory.mktemp("adapters"), EVERY_KIND)


@pytest.fixture(scope="module")
def engine(tiny_base: Path, roots: Path) -> Iterator[Engine]:
    limits = EngineLimits(concurrency=8, columns=COLUMNS, roots=(roots,), graphs=True, drafts=False)
    opened = open_engine(load_base(str(tiny_base), "fp32", say=lambda line: None), limits=limits, say=lambda line: None)
    yield opened
    opened.close()


def test_greedy_answers_of_every_mixture_are_those_of_generate(engine: Engine, tiny_base: Path, roots: Path) -> None:
    oracle = Oracle(tiny_base, roots)
    names = ["none", "a", "b", "patterns", "a:0.5+b", "none", "a", "b", "none"]
    asked = [("hay " * (1 + 31 * n % 90), name, 30 + 7 * n % 30) for n, name in enumerate(names * 2)]
    asked.append(("grass", "dora", 5))
    requests = [
        request_from_inputs(prompt=p, adapter=a, max_tokens=t, temperature=0.0, prompt_template="{prompt}")
        for p, a, t in asked
    ]
    got = [answer.text for answer in answers(engine, requests)]
    assert got == [oracle.text(p, a, max_tokens=t).strip() for p, a, t in asked]
    stats = engine.stats()
    assert 50 < stats.replayed < stats.steps, "some steps have fixed shapes, those with prompts or DoRA don't"


def test_a_seed_gives_the_text_of_an_engine_without_graphs(engine: Engine, tiny_base: Path) -> None:
    requests = [
        request_from_inputs(prompt="hay", seed=seed, max_tokens=30, temperature=1.1, top_p=0.9, repetition_penalty=1.2)
        for seed in range(3)
    ]
    with_graphs = [answer.text for answer in answers(engine, requests)]
    assert len(set(with_graphs)) == 3
    limits = EngineLimits(graphs=False)
    plain = open_engine(load_base(str(tiny_base), "fp32", say=lambda line: None), limits=limits, say=lambda line: None)
    assert [answer.text for answer in answers(plain, requests)] == with_graphs
    assert plain.stats().replayed == 0
    plain.close()


def test_the_operator_can_turn_graphs_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for value, wanted in (("0", False), ("1", None), ("", None)):
        monkeypatch.setenv("GRAPHS", value)
        assert EngineLimits.from_environment(tmp_path).graphs is wanted
