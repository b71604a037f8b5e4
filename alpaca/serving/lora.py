"""The adapters in memory: a fixed number of rank columns, handed out in pages; those least recently used make room.

A column is one rank of every adapted layer. An adapter of rank 16 takes 16 columns wherever pages are free. Loading
one copies into what is there already, so shapes never change and running answers are not touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor

from alpaca.adapter.folder import PREFIX, AdapterFiles
from alpaca.adapter.lora_config import LoraSpec
from alpaca.errors import BadAdapter, BadComposition
from alpaca.serving.product import columns_whole
from alpaca.serving.projection import Mix, Projection
from alpaca.serving.transfer import send
from alpaca.words import joined

PAGE = 16  # columns; ranks are rounded up to it
LARGEST = 1e4  # of A, B and DoRA's factors: every token meets every adapter's A, and inf · 0 would be NaN for all


@dataclass
class Weights:
    """An adapter's tensors ready to be copied in: module → (A, B scaled by alpha / r and turned, DoRA's gain)."""

    rank: int
    modules: dict[str, tuple[Tensor, Tensor, Tensor | None]]


@dataclass(eq=False)
class Place:
    """Where an adapter lies. `strength` [columns], on the CPU, is 1 in its columns; answers in progress pin it."""

    digest: str
    pages: list[int]
    strength: Tensor
    width: int
    dora: bool
    pins: int = 0
    last_used: int = 0


@dataclass
class LoraStack:
    """Adapters beside the base's layers, by content hash."""

    projections: Mapping[str, tuple[Projection, int]]
    columns: int
    loaded: int = 0
    """How often an adapter was copied in."""
    _places: dict[str, Place] = field(default_factory=dict)
    _clock: int = 0

    def check(self, name: str, spec: LoraSpec, modules: tuple[str, ...], scale: float) -> None:
        """Raise BadAdapter for one that can't be served, whatever else is loaded."""
        rank = largest_rank(spec, modules)
        if round_up(rank) > self.columns:
            raise BadAdapter(
                f"{name} has rank {rank}, and this server has room for {self.columns}; raise MAX_LORA_COLUMNS"
            )
        if spec.use_dora and scale not in (0.0, 1.0):
            raise BadAdapter(f"{name} is a DoRA adapter: its strength can't be changed, adapter_scale must be 0 or 1")
        for module in modules:
            if module not in self.projections:
                raise BadAdapter(f"{name} adapts {module}, which the engine can't adapt")

    def check_together(self, ranks: Sequence[tuple[str, int]]) -> None:
        """Raise BadComposition for adapters, by name and rank, that never find room in memory at the same time."""
        taken = sum(round_up(rank) for _, rank in ranks)
        if taken > self.columns:
            listed = joined(f"{name} has rank {rank}" for name, rank in ranks)
            raise BadComposition(
                f"{listed}: in steps of {PAGE} they take {taken} together, and this server has room for "
                f"{self.columns}; name fewer, or raise MAX_LORA_COLUMNS"
            )

    def prepare(self, spec: LoraSpec, modules: tuple[str, ...], tensors: Mapping[str, Tensor]) -> Weights:
        """Scale and turn an adapter's tensors. It reads the base's weights and changes nothing: safe in any thread."""
        prepared = {}
        for module in modules:
            a, b = (tensors[f"{PREFIX}{module}.lora_{side}.weight"].float() for side in "AB")
            b = b * spec.scaling(module)
            gain = None
            if spec.use_dora:
                magnitude = tensors[f"{PREFIX}{module}.lora_magnitude_vector"].float()
                gain = self._gain(module, a, b, magnitude)
                b = b * gain.to(b.device)[:, None]
            for part in (a, b, gain):
                if part is not None and not part.abs().max() <= LARGEST:
                    raise BadAdapter(f"{module} holds numbers beyond {LARGEST:,.0f}, alpha / r included")
            prepared[module] = (a, b.T.contiguous(), gain)
        return Weights(largest_rank(spec, modules), prepared)

    def find(self, digest: str) -> Place | None:
        """Where the adapter lies, if it is loaded."""
        return self._places.get(digest)

    def find_all(self, digests: Sequence[str]) -> list[Place] | None:
        """Where several adapters lie, in their order; None unless all of them are loaded."""
        places = [place for digest in digests if (place := self._places.get(digest)) is not None]
        return places if len(places) == len(digests) else None

    def put(self, read: Mapping[str, Weights], beside: Sequence[Place] = ()) -> bool:
        """Copy adapters in, by content hash, all or none: False where answers in progress pin too many columns.

        `beside`: adapters that are needed together with them, so they make no room.
        """
        counts = [round_up(weights.rank) // PAGE for weights in read.values()]
        pages = self._make_room(sum(counts), beside)
        if pages is None:
            return False
        for (digest, weights), count in zip(read.items(), counts, strict=True):
            self._copy_in(digest, weights, pages[:count])
            pages = pages[count:]
        return True

    def _copy_in(self, digest: str, weights: Weights, pages: list[int]) -> None:
        device = next(iter(self.projections.values()))[0].weight.device
        there = torch.tensor([page * PAGE + column for page in pages for column in range(PAGE)])
        strength = torch.zeros(self.columns)
        strength[there] = 1.0
        columns = send(there, device)
        for projection in {id(p): p for p, _ in self.projections.values()}.values():
            projection.clear(columns)
        dora = False
        for module, (a, b, gain) in weights.modules.items():
            projection, member = self.projections[module]
            projection.load(member, columns, a, b)
            if gain is not None:
                dora = True
                projection.set_gain(digest, member, gain)
        self._places[digest] = Place(digest, pages, strength, (max(pages) + 1) * PAGE, dora)
        self.loaded += 1

    def pin(self, place: Place) -> None:
        """Keep an adapter in memory until it is unpinned as often."""
        self._clock += 1
        place.pins += 1
        place.last_used = self._clock

    def unpin(self, place: Place) -> None:
        place.pins -= 1

    @property
    def pinned(self) -> int:
        """Adapters that answers in progress use."""
        return sum(place.pins > 0 for place in list(self._places.values()))  # read from other threads too

    def __len__(self) -> int:
        return len(self._places)

    def _make_room(self, count: int, beside: Sequence[Place]) -> list[int] | None:
        """The lowest `count` free pages; adapters not in use are given up for them, the least recently used first."""
        idle = [place for place in self._places.values() if not place.pins and place not in beside]
        idle.sort(key=lambda place: place.last_used, reverse=True)
        if len(self._free_pages()) + sum(len(place.pages) for place in idle) < count:
            return None
        while len(free := self._free_pages()) < count:
            self._evict(idle.pop())
        return free[:count]

    def _free_pages(self) -> list[int]:
        used = {page for place in self._places.values() for page in place.pages}
        return [page for page in range(self.columns // PAGE) if page not in used]

    def _evict(self, place: Place) -> None:
        del self._places[place.digest]
        if place.dora:
            for projection, _ in self.projections.values():
                projection.gains.pop(place.digest, None)

    def _gain(self, module: str, a: Tensor, b: Tensor, magnitude: Tensor) -> Tensor:
        """magnitude / ‖W + B·A‖, a factor for each output (arXiv:2402.09353)."""
        projection, member = self.projections[module]
        if not projection.dense or projection.bias is not None:
            raise BadAdapter("a DoRA adapter needs a base in bf16 or fp32 without biases; set PRECISION, or merge it")
        start = sum(projection.sizes[:member])
        weight = projection.weight[start : start + projection.sizes[member]]
        merged = weight.float() + (b @ a).to(weight.device)
        return magnitude.to(weight.device) / torch.linalg.vector_norm(merged, dim=1)


def largest_rank(spec: LoraSpec, modules: Sequence[str]) -> int:
    """How many columns of each layer an adapter of these modules takes, before they are rounded up to pages."""
    return max(spec.rank(module) for module in modules)


def round_up(rank: int) -> int:
    """In whole pages."""
    return -(-rank // PAGE) * PAGE


def columns_taken(adapters: Iterable[AdapterFiles]) -> int:
    """How many columns of each layer adapters take that answer together."""
    return sum(round_up(largest_rank(files.spec, files.modules)) for files in adapters)


User = tuple[Sequence[tuple[Place, float]], int]
"""Where adapters lie, each with its strength (none: the base alone), and how many tokens use them together."""


def mix(users: Sequence[User], members: set[int], dtype: torch.dtype, device: torch.device) -> Mix | None:
    """What the tokens of a step need, in the order of `users`; None where all of them use the base alone.

    `members`: the sizes of projection there are; `dtype`, `device`: the base's.
    """
    width = used_width(users)
    if not width:
        return None
    gains: dict[str, list[int]] = {}
    done = 0
    for places, count in users:
        for place, _ in places:
            if place.dora:
                gains.setdefault(place.digest, []).extend(range(done, done + count))
        done += count
    sent = send(strengths(users, width).to(dtype), device)
    return Mix(
        width,
        {size: columns_whole(sent.repeat_interleave(size, dim=1)) for size in members},
        [(send(torch.tensor(which), device), digest) for digest, which in gains.items()],
    )


def used_width(users: Sequence[User]) -> int:
    """How many columns are in use, counted from the first."""
    return max((place.width for places, _ in users for place, _ in places), default=0)


def strengths(users: Sequence[User], width: int) -> Tensor:
    """[tokens, width] on the CPU: how much of each column every token takes."""
    nothing = torch.zeros(width)
    rows: list[Tensor] = []
    for places, count in users:
        scaled = [place.strength[:width] * scale for place, scale in places]
        rows.append((reduce(torch.add, scaled) if scaled else nothing).expand(count, width))
    return torch.cat(rows)
