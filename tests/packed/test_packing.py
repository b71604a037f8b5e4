"""Packs and steps: nothing lost, nothing twice, budgets kept, and the same steps whatever the packing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpaca.packed.packing import fill_packs, make_step, plan_steps, share

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@given(LENGTHS, st.integers(1, 80), st.none() | st.integers(1, 5))
def test_packs_hold_each_example_once_within_budget_and_count(
    lengths: list[int], budget: int, most: int | None
) -> None:
    packs = fill_packs(range(len(lengths)), lengths, budget, most)
    assert sorted(index for pack in packs for index in pack) == list(range(len(lengths)))
    for pack in packs:
        assert pack
        assert sum(lengths[i] for i in pack) <= budget or len(pack) == 1
        assert most is None or len(pack) <= most


def test_best_fit_decreasing_fills_the_fullest_pack_that_has_room() -> None:
    assert fill_packs(range(5), [6, 5, 4, 3, 2], 10) == [(0, 2), (1, 3, 4)]


def test_an_example_over_the_budget_is_alone() -> None:
    assert fill_packs([0, 1, 2], [50, 5, 5], 10) == [(0,), (1, 2)]


@given(LENGTHS)
def test_packing_does_not_depend_on_the_order_given(lengths: list[int]) -> None:
    indices = range(len(lengths))
    assert fill_packs(list(reversed(indices)), lengths, 64) == fill_packs(indices, lengths, 64)


@given(LENGTHS, st.integers(1, 4))
def test_processes_share_a_step_and_run_equally_many_packs(lengths: list[int], processes: int) -> None:
    labels = [max(1, length // 2) for length in lengths]
    step = make_step(range(len(lengths)), lengths, labels, budget=64, processes=processes)
    assert sorted(step.examples) == list(range(len(lengths)))
    assert len(step.packs) == processes
    assert len({len(rank) for rank in step.packs}) == 1
    assert step.labels == sum(labels)
    assert step.tokens == sum(lengths)


def test_the_load_is_even() -> None:
    lengths = [8, 7, 6, 5, 4, 3, 2, 1]
    assert [sum(lengths[i] for i in part) for part in share(range(8), lengths, 2)] == [18, 18]


def test_fewer_examples_than_processes_leave_idle_packs() -> None:
    step = make_step([3], [0, 0, 0, 9], [0, 0, 0, 4], budget=64, processes=3)
    assert step.packs == (((3,),), ((),), ((),))


@given(
    LENGTHS, st.integers(1, 12), st.sampled_from([0.01, 0.5, 1, 1.5, 2, 3]), st.integers(0, 5), st.integers(20, 200),
    st.none() | st.integers(1, 4), st.integers(1, 3),
)  # fmt: skip
def test_a_step_is_the_same_examples_however_they_are_packed(
    lengths: list[int], batch: int, epochs: float, seed: int, budget: int, most: int | None, processes: int
) -> None:
    plain = plan_steps(lengths, lengths, batch_size=batch, budget=10**6, num_epochs=epochs, seed=seed)
    packed = plan_steps(
        lengths, lengths, batch_size=batch, budget=budget, num_epochs=epochs, seed=seed, most=most, processes=processes
    )
    assert [sorted(step.examples) for step in plain] == [sorted(step.examples) for step in packed]
    assert [step.labels for step in plain] == [step.labels for step in packed]


def test_each_epoch_sees_every_example_once_in_an_order_of_its_own() -> None:
    steps = plan_steps([1] * 10, [1] * 10, batch_size=4, budget=4, num_epochs=3, seed=0)
    assert [len(step.examples) for step in steps] == [4, 4, 2] * 3
    epochs = [[i for step in steps[e * 3 : e * 3 + 3] for i in step.examples] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(sorted(steps[e * 3].examples)) for e in range(3)}) > 1


@pytest.mark.parametrize(
    ("epochs", "steps"), [(0.001, 1), (0.1, 1), (1 / 3, 1), (0.34, 2), (1, 3), (1.5, 5), (3, 9), (0.1 + 0.2, 1)]
)
def test_a_fraction_of_an_epoch_is_that_fraction_of_its_steps(epochs: float, steps: int) -> None:
    assert len(plan_steps([1] * 10, [1] * 10, batch_size=4, budget=9, num_epochs=epochs, seed=0)) == steps


def test_the_seed_decides_the_order() -> None:
    def order(seed: int) -> list[int]:
        steps = plan_steps([1] * 50, [1] * 50, batch_size=5, budget=9, num_epochs=1, seed=seed)
        return [i for s in steps for i in s.examples]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_fifty_thousand_rows_are_planned_at_once() -> None:
    lengths = [1 + (i * 7919) % 300 for i in range(52_000)]
    steps = plan_steps(lengths, lengths, batch_size=128, budget=8192, num_epochs=3, seed=0)
    assert len(steps) == 3 * 407
