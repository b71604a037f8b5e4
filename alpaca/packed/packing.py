"""Which examples make which optimizer step, and which of them share a pack.

A step is `batch_size` examples, whatever their lengths and however many processes there are; packing only decides how
they are spread over micro-batches. So a packed run takes the same steps as an unpacked one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Pack = tuple[int, ...]  # indices of examples; () is an idle micro-batch, which some process may need


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step: for each process its packs, and the labels of all of them together."""

    packs: tuple[tuple[Pack, ...], ...]
    labels: int
    tokens: int

    @property
    def examples(self) -> list[int]:
        return [index for rank in self.packs for pack in rank for index in pack]


def fill_packs(indices: Sequence[int], lengths: Sequence[int], budget: int, most: int | None = None) -> list[Pack]:
    """Best-fit-decreasing bin packing: each pack holds at most `budget` tokens and `most` examples.

    An example longer than the budget has a pack to itself. The order is fixed by lengths, then by index.
    """
    packs: list[list[int]] = []
    room: list[int] = []
    for index in sorted(indices, key=lambda i: (-lengths[i], i)):
        fitting = [
            number
            for number, left in enumerate(room)
            if left >= lengths[index] and (most is None or len(packs[number]) < most)
        ]
        if fitting:
            best = min(fitting, key=lambda number: room[number])
            packs[best].append(index)
            room[best] -= lengths[index]
        else:
            packs.append([index])
            room.append(budget - lengths[index])
    return [tuple(pack) for pack in packs]


def share(indices: Sequence[int], lengths: Sequence[int], processes: int) -> list[list[int]]:
    """Give each example to the process with the fewest tokens so far, the longest first."""
    shares: list[list[int]] = [[] for _ in range(processes)]
    load = [0] * processes
    for index in sorted(indices, key=lambda i: (-lengths[i], i)):
        lightest = load.index(min(load))
        shares[lightest].append(index)
        load[lightest] += lengths[index]
    return shares


def make_step(
    indices: Sequence[int],
    lengths: Sequence[int],
    labels: Sequence[int],
    *,
    budget: int,
    most: int | None = None,
    processes: int = 1,
) -> Step:
    """Pack the examples of one step. Every process gets equally many packs, idle ones where it must be, because
    sharded training counts forward passes."""
    packs = [fill_packs(part, lengths, budget, most) for part in share(indices, lengths, processes)]
    longest = max(len(rank) for rank in packs)
    even = tuple(tuple(rank) + ((),) * (longest - len(rank)) for rank in packs)
    return Step(even, sum(labels[i] for i in indices), sum(lengths[i] for i in indices))


def plan_steps(
    lengths: Sequence[int],
    labels: Sequence[int],
    *,
    batch_size: int,
    budget: int,
    num_epochs: float,
    seed: int,
    most: int | None = None,
    processes: int = 1,
) -> list[Step]:
    """All steps of a run, in order. Each epoch is a permutation of its own, drawn from (seed, epoch); its last step
    takes what is left. A fraction of an epoch at the end is that fraction of its steps, rounded up."""
    steps: list[Step] = []
    per_epoch = -(-len(lengths) // batch_size)
    total = max(1, int(np.ceil(per_epoch * num_epochs - 1e-9)))
    epoch = 0
    while len(steps) < total:
        order = np.random.default_rng([seed, epoch]).permutation(len(lengths)).tolist()
        for start in range(0, len(order), batch_size):
            if len(steps) == total:
                break
            steps.append(
                make_step(
                    order[start : start + batch_size], lengths, labels, budget=budget, most=most, processes=processes
                )
            )
        epoch += 1
    return steps
