"""Answers and adapters as a step sees them, made by hand."""

from __future__ import annotations

import torch

from alpaca.prompts.example import Example
from alpaca.serving.lora import Place
from alpaca.serving.request import GenerationRequest
from alpaca.serving.sampling import Sampler
from alpaca.serving.sequence import Job, Sequence
from alpaca.serving.slots import BLOCK, Slot
from alpaca.serving.text import TextStream
from tests.conftest import make_tokenizer

COLUMNS = 96
TOKENIZER = make_tokenizer()


def decoding(start: int, length: int, used: list[tuple[Place, float]], fresh: int = 1) -> Sequence:
    """An answer of random tokens, all but the last `fresh` of which are in the cache, where its range is."""
    request = GenerationRequest(Example.single("hay"))
    tokens = torch.randint(4, 300, (length,), generator=torch.Generator().manual_seed(start)).tolist()
    sampler = Sampler(request, tokens, seed=0, eos_ids=[2])
    answer = Sequence(
        Job(request, (), tokens, 10), 0, sampler, TextStream(TOKENIZER), frozenset(), tokens, length - fresh
    )
    answer.slot, answer.places = Slot(start, -(-length // BLOCK) * BLOCK), tuple(used)
    return answer


def place(first: int, last: int, *, dora: bool = False) -> Place:
    """An adapter in columns first … last."""
    strength = torch.zeros(COLUMNS)
    strength[first:last] = 1.0
    return Place(f"{first}-{last}", [], strength, last, dora)
