"""Adapters in memory: where they lie, who makes room for whom, and that a token meets its own adapter alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from alpaca.adapter.lora_config import LoraSpec
from alpaca.errors import BadAdapter, BadComposition
from alpaca.serving.lora import PAGE, LoraStack, Place, User, Weights, mix
from alpaca.serving.projection import Projection
from tests.serving.peft_adapters import make_adapter

CPU = torch.device("cpu")
INPUTS, OUTPUTS = 24, {"q": 32, "k": 16, "v": 16, "o": 24}


class Stack:
    """Two projections, of three layers and of one, with room for adapters."""

    def __init__(self, columns: int, *, bias: bool = False) -> None:
        torch.manual_seed(0)
        self.linears = {
            name: nn.Linear(INPUTS, size, bias=bias).requires_grad_(False) for name, size in OUTPUTS.items()
        }
        self.weights = {name: linear.weight.clone() for name, linear in self.linears.items()}
        qkv = Projection([self.linears[name] for name in "qkv"], columns)
        self.places = {"q": (qkv, 0), "k": (qkv, 1), "v": (qkv, 2), "o": (Projection([self.linears["o"]], columns), 0)}
        self.lora = LoraStack(self.places, columns)

    def put(self, name: str, rank: int, modules: str = "qkvo") -> Place | None:
        return self.lora.find(name) if self.lora.put({name: random_adapter(name, rank, modules)}) else None

    def computed(self, x: torch.Tensor, users: list[tuple[Place | None, float, int]]) -> dict[str, torch.Tensor]:
        """What each layer gives for rows of which so many use each place."""
        return self.composed(x, [([] if place is None else [(place, scale)], count) for place, scale, count in users])

    def composed(self, x: torch.Tensor, users: list[User]) -> dict[str, torch.Tensor]:
        """The same for rows of which so many use several places together."""
        qkv, o = self.places["q"][0], self.places["o"][0]
        mixed = mix(users, {1, 3}, torch.float32, CPU)
        parts = qkv(x, mixed).split([OUTPUTS[name] for name in "qkv"], -1)
        return {**dict(zip("qkv", parts, strict=True)), "o": o(x, mixed)}

    def by_hand(self, x: torch.Tensor, module: str, weights: Weights | None, scale: float) -> torch.Tensor:
        y = x @ self.weights[module].T
        if self.linears[module].bias is not None:
            y = y + self.linears[module].bias
        if weights is not None and module in weights.modules:
            a, b, _ = weights.modules[module]
            y = y + scale * (x @ a.T) @ b
        return y


def random_adapter(name: str, rank: int, modules: str = "qkvo") -> Weights:
    """Modules of various ranks up to `rank`; the same name gives the same numbers."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    found = {}
    for number, module in enumerate(modules):
        r = max(1, rank - number * 3)
        a = torch.randn(r, INPUTS, generator=generator)
        found[module] = (a, torch.randn(r, OUTPUTS[module], generator=generator), None)
    return Weights(rank, found)


@pytest.mark.parametrize("bias", [False, True])
def test_each_row_meets_its_own_adapter_at_its_own_strength(bias: bool) -> None:
    stack = Stack(96, bias=bias)
    asked: list[tuple[str | None, int, str, float, int]] = [
        (None, 0, "", 1.0, 2), ("a", 4, "qkvo", 1.0, 1), ("b", 33, "kv", 0.5, 3), ("c", 16, "o", 4.0, 1),
        ("a", 4, "qkvo", 0.25, 2), (None, 0, "", 0.0, 1),
    ]  # fmt: skip
    users: list[tuple[Place | None, float, int]] = []
    for name, rank, modules, scale, count in asked:
        place = None if name is None else stack.lora.find(name) or stack.put(name, rank, modules)
        users.append((place, scale, count))
    x = torch.randn(sum(count for *_, count in asked), INPUTS)
    found, row = stack.computed(x, users), 0
    for name, rank, modules, scale, count in asked:
        weights = None if name is None else random_adapter(name, rank, modules)
        rows = slice(row, row + count)
        for module, y in found.items():
            assert torch.allclose(y[rows], stack.by_hand(x[rows], module, weights, scale), atol=1e-4), (name, module)
        row += count


@given(st.permutations("abc"))
@settings(deadline=None, max_examples=10)
def test_adapters_used_together_add_up_in_any_order(order: list[str]) -> None:
    stack = Stack(96)
    ranks, scales = {"a": 4, "b": 33, "c": 16}, {"a": 0.7, "b": 0.5, "c": 2.0}
    places = {name: stack.put(name, rank) for name, rank in ranks.items()}
    x = torch.randn(5, INPUTS)
    together = [(place, scales[name]) for name in order if (place := places[name]) is not None]
    found = stack.composed(x, [([], 1), (together, 3), (together[:1], 1)])
    for module, y in found.items():
        added = [stack.by_hand(x, module, random_adapter(name, ranks[name]), scales[name]) for name in order]
        base = stack.by_hand(x, module, None, 0.0)
        assert torch.allclose(y[:1], base[:1], atol=1e-4)
        assert torch.allclose(y[1:4], (sum(added) - 2 * base)[1:4], atol=1e-3)
        assert torch.allclose(y[4:], added[0][4:], atol=1e-3)


def test_without_an_adapter_in_the_step_nothing_is_added() -> None:
    stack = Stack(32)
    stack.put("a", 16)
    assert mix([([], 3)], {1, 3}, torch.float32, CPU) is None
    assert mix([], {1, 3}, torch.float32, CPU) is None
    x = torch.randn(3, INPUTS)
    for module, y in stack.computed(x, [(None, 1.0, 3)]).items():
        assert torch.allclose(y, stack.by_hand(x, module, None, 0.0), atol=1e-6)


def test_the_layers_are_views_of_the_whole_and_compute_as_before() -> None:
    stack = Stack(32, bias=True)
    stack.put("a", 16)
    x = torch.randn(5, INPUTS)
    for name, linear in stack.linears.items():
        assert torch.equal(linear.weight, stack.weights[name])
        assert linear.weight.untyped_storage().data_ptr() == stack.places[name][0].weight.untyped_storage().data_ptr()
        assert torch.allclose(linear(x), stack.by_hand(x, name, None, 0.0), atol=1e-5)


# --- who makes room -----------------------------------------------------------------------------------------------
def test_the_one_unused_for_longest_makes_room_and_one_in_use_never_does() -> None:
    stack = Stack(3 * PAGE)
    for name in "abc":
        place = stack.put(name, 16)
        assert place is not None
        stack.lora.pin(place)
        stack.lora.unpin(place)
    oldest = stack.lora.find("a")
    assert oldest is not None
    stack.lora.pin(oldest)
    assert stack.put("d", 1) is not None
    assert [bool(stack.lora.find(name)) for name in "abcd"] == [True, False, True, True]
    assert (len(stack.lora), stack.lora.pinned, stack.lora.loaded) == (3, 1, 4)


def test_where_all_are_in_use_there_is_no_place_until_one_is_not() -> None:
    stack = Stack(2 * PAGE)
    places = [stack.put(name, 16) for name in "ab"]
    for place in places:
        assert place is not None
        stack.lora.pin(place)
        stack.lora.pin(place)
    assert stack.put("c", 16) is None
    assert places[0] is not None and places[1] is not None
    stack.lora.unpin(places[0])
    assert stack.put("c", 16) is None
    stack.lora.unpin(places[0])
    assert stack.put("wide", 17) is None
    assert stack.put("c", 16) is not None
    assert stack.lora.find("b") is places[1]


def test_several_are_put_all_or_none_and_those_beside_them_stay() -> None:
    stack = Stack(4 * PAGE)
    used, beside, idle = (stack.put(name, 16) for name in "abc")
    assert used is not None and beside is not None and idle is not None
    stack.lora.pin(used)
    stack.lora.pin(beside)
    stack.lora.unpin(beside)  # used after the idle one
    wanted = {name: random_adapter(name, 16) for name in "de"}
    assert not stack.lora.put({**wanted, "f": random_adapter("f", 16)}, beside=[beside])
    assert [name for name in "abcdef" if stack.lora.find(name)] == ["a", "b", "c"]
    assert stack.lora.put(wanted, beside=[beside])
    assert [name for name in "abcde" if stack.lora.find(name)] == ["a", "b", "d", "e"]
    assert stack.lora.find_all(["d", "c"]) is None
    found = stack.lora.find_all(["e", "b"])
    assert found is not None and [place.digest for place in found] == ["e", "b"]


def test_nothing_of_an_adapter_stays_where_another_is_put() -> None:
    stack = Stack(2 * PAGE)
    stack.put("wide", 32)
    for name, rank, modules in (("narrow", 2, "k"), ("other", 5, "qo")):
        place = stack.put(name, rank, modules)
        x = torch.randn(4, INPUTS)
        weights = random_adapter(name, rank, modules)
        for module, y in stack.computed(x, [(place, 1.0, 4)]).items():
            assert torch.allclose(y, stack.by_hand(x, module, weights, 1.0), atol=1e-4), (name, module)


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_whatever_is_loaded_and_given_up_rows_meet_their_own_adapters(data: st.DataObject) -> None:
    """Pages end up scattered; those that are pinned keep theirs, and answer right after every change."""
    stack = Stack(6 * PAGE)
    ranks = {"a": 3, "b": 16, "c": 20, "d": 40, "e": 49, "f": 90}
    pinned: list[tuple[str, Place]] = []
    for _ in range(data.draw(st.integers(1, 12))):
        if pinned and data.draw(st.booleans()):
            _, place = pinned.pop(data.draw(st.integers(0, len(pinned) - 1)))
            stack.lora.unpin(place)
            continue
        name = data.draw(st.sampled_from(sorted(ranks)))
        found = stack.lora.find(name) or stack.put(name, ranks[name])
        held = {other: place for other, place in pinned}
        if found is None:
            taken = sum(len(place.pages) for place in held.values())
            assert taken + -(-ranks[name] // PAGE) > 6
            continue
        stack.lora.pin(found)
        pinned.append((name, found))
        pages = [page for place in stack.lora._places.values() for page in place.pages]
        assert len(pages) == len(set(pages)) <= 6
        x = torch.randn(2 * len(pinned) + 1, INPUTS)
        got = stack.computed(x, [(None, 1.0, 1), *((place, 1.5, 2) for _, place in pinned)])
        for module, y in got.items():
            assert torch.allclose(y[:1], stack.by_hand(x[:1], module, None, 0.0), atol=1e-5)
            for number, (other, _) in enumerate(pinned):
                rows = slice(1 + 2 * number, 3 + 2 * number)
                weights = random_adapter(other, ranks[other])
                assert torch.allclose(y[rows], stack.by_hand(x[rows], module, weights, 1.5), atol=1e-3)
    assert stack.lora.pinned == len({name for name, _ in pinned})


# --- what can't be served -----------------------------------------------------------------------------------------
def spec(**changes: Any) -> LoraSpec:
    return LoraSpec(**{"r": 8, "lora_alpha": 16.0, "target_modules": ("q",), **changes})


@pytest.mark.parametrize(
    ("changes", "modules", "scale", "says"),
    [
        ({"r": 33}, ("q",), 1.0, "rank 33, and this server has room for 32; raise MAX_LORA_COLUMNS"),
        ({"rank_pattern": {"k": 64}}, ("q", "k"), 1.0, "rank 64"),
        ({"use_dora": True}, ("q",), 0.5, "adapter_scale must be 0 or 1"),
        ({}, ("q", "lm_head"), 1.0, "mine adapts lm_head, which the engine can't adapt"),
    ],
)
def test_what_can_not_be_served_is_refused_by_name(
    changes: dict[str, Any], modules: tuple[str, ...], scale: float, says: str
) -> None:
    with pytest.raises(BadAdapter, match=r"E4002.*mine") as caught:
        Stack(32).lora.check("mine", spec(**changes), modules, scale)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "scale"),
    [({"r": 32}, 4.0), ({"use_dora": True}, 0.0), ({"use_dora": True}, 1.0), ({"rank_pattern": {"k": 64}}, 0.5)],
)
def test_what_fits_is_not_refused(changes: dict[str, Any], scale: float) -> None:
    Stack(32).lora.check("mine", spec(**changes), ("q",), scale)


def test_adapters_that_never_fit_together_are_refused_with_their_ranks() -> None:
    with pytest.raises(BadComposition, match=r"^E1006 .*a has rank 17 and b has rank 16: .* take 48 .* room for 32"):
        Stack(32).lora.check_together([("a", 17), ("b", 16)])
    Stack(32).lora.check_together([("a", 1), ("b", 16)])


def test_an_adapter_that_changes_nothing_is_called_out(tiny_base: Path, tmp_path: Path) -> None:
    from alpaca.serving.inputs import request_from_inputs
    from alpaca.serving.limits import EngineLimits
    from alpaca.serving.loading import load_base, open_engine

    make_adapter(tiny_base, tmp_path / "zero", spread=0.0)
    make_adapter(tiny_base, tmp_path / "some", target_modules=["q_proj", "v_proj", "o_proj"])
    said: list[str] = []
    base = load_base(str(tiny_base), "fp32", say=said.append)
    engine = open_engine(base, limits=EngineLimits(roots=(tmp_path,)), say=said.append)
    for name in ("zero", "some"):
        list(engine.submit(request_from_inputs(prompt="hay", max_tokens=1, adapter=name)))
    engine.close()
    text = "\n".join(said)
    assert "zero changes 0 of its 4 modules" in text
    assert "WARNING: every B of zero is zero" in text and "every B of some" not in text
    assert "some changes 6 of its 6 modules" in text
