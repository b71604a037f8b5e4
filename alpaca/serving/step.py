"""From the answers that take part in a step to the tensors of its forward pass."""

from __future__ import annotations

import torch

from alpaca.serving.attention import Attended, Row, prefill, spans
from alpaca.serving.decoder import Decoder, Step
from alpaca.serving.lora import User, mix
from alpaca.serving.sequence import Sequence
from alpaca.serving.transfer import send

FREE_ROWS = 16  # up to this many rows, each number has its own compiled products; beyond, they are padded to multiples

PAIRS = 24_576  # of a chunk's tokens and what they read; with more, kernels attend more slowly than torch

Parts = list[tuple[Sequence, int]]


def build_step(parts: Parts, decoder: Decoder) -> tuple[Step, Parts]:
    """The step's tensors, and `parts` in the order of their rows: those of one row by slot, then the others, which are
    chunks of prompts and tokens with guesses behind them."""
    ordered = sorted(parts, key=lambda part: (part[1] > 1, part[0].slot.start if part[0].slot else 0))
    tokens: list[int] = []
    positions: list[int] = []
    where: list[int] = []
    wanted: list[int] = []
    starts: list[int] = []
    lengths: list[int] = []
    for answer, count in ordered:
        assert answer.slot is not None
        end = answer.computed + count
        tokens += answer.upcoming(count)
        positions += range(answer.computed, end)
        where += range(answer.slot.start + answer.computed, answer.slot.start + end)
        wanted += range(len(tokens) - _asked(answer, count), len(tokens))
        if decoder.kernels is not None:
            starts += [answer.slot.start] * count
            lengths += [0] * count if _is_long(answer, count) else range(answer.computed + 1, end + 1)
    padding = (-len(tokens)) % FREE_ROWS if len(tokens) > FREE_ROWS and decoder.kernels is None else 0
    device = decoder.device
    users: list[User] = [(answer.places, count) for answer, count in ordered]
    asked: list[User] = [(answer.places, rows) for answer, count in ordered if (rows := _asked(answer, count))]
    numbers = (tokens + [0] * padding, positions + [0] * padding, where, wanted, starts, lengths)
    together = send(torch.tensor([number for part in numbers for number in part], dtype=torch.long), device)
    sent = together.split([len(part) for part in numbers])
    step = Step(
        tokens=sent[0],
        positions=sent[1],
        where=sent[2],
        parts=_attention(ordered, decoder),
        wanted=sent[3],
        alone=(sent[4], sent[5]) if decoder.kernels is not None else None,
        mix=mix([*users, ((), padding)], decoder.members, decoder.dtype, device),
        head_mix=mix(asked, {1}, decoder.dtype, device) if decoder.head_projection else None,
    )
    return step, ordered


def _asked(answer: Sequence, count: int) -> int:
    """Behind how many of an answer's rows a token is asked for: the last known one and the guesses, if it has these."""
    return max(0, count - answer.remaining + 1)


def _is_long(answer: Sequence, count: int) -> bool:
    return count > 1 and count * (answer.computed + count) > PAIRS


def _attention(ordered: Parts, decoder: Decoder) -> list[Attended]:
    """What torch attends to: without kernels everything, else the chunks that are long."""
    decoding = [Row(a.slot.start, a.slot.size, len(a.tokens)) for a, count in ordered if count == 1 and a.slot]
    found: list[Attended] = [] if decoder.kernels else [*spans(decoding, decoder.device)]
    first = len(decoding)
    for answer, count in ordered[len(decoding) :]:
        assert answer.slot is not None
        group = decoder.heads // decoder.kv_heads
        if decoder.kernels is None or _is_long(answer, count):
            found.append(prefill(first, count, answer.slot.start, answer.computed, group, decoder.device))
        first += count
    return found
