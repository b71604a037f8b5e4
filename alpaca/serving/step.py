"""From the answers that take part in a step to the tensors of its forward pass."""

from __future__ import annotations

import torch

from alpaca.serving.attention import Prefill, Row, Span, prefill, spans
from alpaca.serving.decoder import Decoder, Step
from alpaca.serving.lora import User, mix
from alpaca.serving.sequence import Sequence

FREE_ROWS = 16  # up to this many rows, each number has its own compiled products; beyond, they are padded to multiples

Parts = list[tuple[Sequence, int]]


def build_step(parts: Parts, decoder: Decoder) -> tuple[Step, Parts]:
    """The step's tensors, and `parts` in the order of their rows: those of one row by slot, then the others, which are
    chunks of prompts and tokens with guesses behind them."""
    ordered = sorted(parts, key=lambda part: (part[1] > 1, part[0].slot.start if part[0].slot else 0))
    tokens: list[int] = []
    positions: list[int] = []
    where: list[int] = []
    wanted: list[int] = []
    for answer, count in ordered:
        assert answer.slot is not None
        end = answer.computed + count
        tokens += answer.upcoming(count)
        positions += range(answer.computed, end)
        where += range(answer.slot.start + answer.computed, answer.slot.start + end)
        wanted += range(len(tokens) - _asked(answer, count), len(tokens))
    padding = (-len(tokens)) % FREE_ROWS if len(tokens) > FREE_ROWS else 0
    device = decoder.device
    users: list[User] = [(answer.places, count) for answer, count in ordered]
    asked: list[User] = [(answer.places, rows) for answer, count in ordered if (rows := _asked(answer, count))]
    step = Step(
        torch.tensor(tokens + [0] * padding, device=device),
        torch.tensor(positions + [0] * padding, device=device),
        torch.tensor(where, device=device),
        _attention(ordered, decoder),
        torch.tensor(wanted, dtype=torch.long, device=device),
        mix([*users, ((), padding)], decoder.members, decoder.dtype),
        mix(asked, {1}, decoder.dtype) if decoder.head_projection else None,
    )
    return step, ordered


def _asked(answer: Sequence, count: int) -> int:
    """Behind how many of an answer's rows a token is asked for: the last known one and the guesses, if it has these."""
    return max(0, count - answer.remaining + 1)


def _attention(ordered: Parts, decoder: Decoder) -> list[Span | Prefill]:
    decoding = [Row(a.slot.start, a.slot.size, len(a.tokens)) for a, count in ordered if count == 1 and a.slot]
    found: list[Span | Prefill] = [*spans(decoding, decoder.device)]
    first = len(decoding)
    for answer, count in ordered[len(decoding) :]:
        assert answer.slot is not None
        group = decoder.heads // decoder.kv_heads
        found.append(prefill(first, count, answer.slot.start, answer.computed, group, decoder.device))
        first += count
    return found
