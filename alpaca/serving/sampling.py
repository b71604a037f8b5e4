"""How the next token is chosen: penalties, temperature, top-k, top-p, min-p, in transformers' order, and a draw.

Rows of a step are drawn together, each with its own settings and its own random numbers: one number per token, so that
a seed gives the same answer whatever else is in the batch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from alpaca.serving.penalties import Penalties, penalise
from alpaca.serving.request import GenerationRequest
from alpaca.serving.transfer import send

GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: neighbouring seeds and answers land far apart
CANDIDATES = 256  # likeliest tokens looked at first; where they can't settle it, the whole vocabulary is sorted
COLDEST = 1e-4  # a temperature below this would overflow; it takes the likeliest token all the same


def answer_seed(seed: int, answer: int) -> int:
    """The seed of answer number `answer` (from 0); the first has the request's own."""
    return (seed + answer * GOLDEN) % 2**64


class Sampler:
    """The settings of one answer, what they make of what it has said so far, and its random numbers."""

    def __init__(self, request: GenerationRequest, prompt: Sequence[int], *, seed: int, eos_ids: Sequence[int]) -> None:
        self.request = request
        self.seed = seed
        self.penalties = Penalties(request, prompt, eos_ids)
        self._random = random.Random(seed)

    @property
    def greedy(self) -> bool:
        return self.request.temperature == 0.0

    @property
    def filtered(self) -> bool:
        """Whether some tokens are ruled out before the draw."""
        request = self.request
        return request.top_k > 0 or request.top_p < 1.0 or request.min_p > 0.0

    def draw(self) -> float:
        """The next random number, from 0 up to but not including 1."""
        return self._random.random()

    def accept(self, token: int) -> None:
        """Take note of the chosen token."""
        self.penalties.accept(token)


def choose(logits: Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """The next token of every row. logits [rows, vocabulary] in fp32 are changed in place."""
    penalise(logits, [sampler.penalties for sampler in samplers])
    chosen = logits.argmax(-1)
    points = [0.0 if sampler.greedy else sampler.draw() for sampler in samplers]
    for filtered in (False, True):
        rows = [n for n, s in enumerate(samplers) if not s.greedy and s.filtered is filtered]
        if rows:
            taken, at = _rows(logits, rows)
            settings = _settings([samplers[n] for n in rows], [points[n] for n in rows], logits)
            size = max(CANDIDATES, *(samplers[n].request.top_k for n in rows), 0)
            drawn = _draw_filtered(taken, settings, size) if filtered else _draw(taken, settings)
            chosen = drawn if at is None else chosen.index_copy_(0, at, drawn)
    # The one moment of a step at which a GPU is waited for: all before was only put into its queue.
    tokens: list[int] = chosen.tolist()
    unsettled = [n for n, token in enumerate(tokens) if token < 0]
    if unsettled:  # rare, and the only second wait
        settings = _settings([samplers[n] for n in unsettled], [points[n] for n in unsettled], logits)
        again = _draw_filtered(_rows(logits, unsettled)[0], settings, logits.shape[-1]).tolist()
        for n, token in zip(unsettled, again, strict=True):
            tokens[n] = token
    for token, sampler in zip(tokens, samplers, strict=True):
        sampler.accept(token)
    return tokens


def _rows(logits: Tensor, rows: list[int]) -> tuple[Tensor, Tensor | None]:
    """Some rows, by rising number, and where they are; None where they are all of them."""
    if len(rows) == len(logits):
        return logits, None
    at = send(torch.tensor(rows), logits.device)
    return logits.index_select(0, at), at


def _settings(samplers: Sequence[Sampler], points: Sequence[float], logits: Tensor) -> Tensor:
    """[5, rows, 1] in fp64, in which a random number stays below 1: temperature, point, top_k, top_p, min_p.

    One tensor, because each that is sent to a GPU costs as much, whatever its size. A top_k of all tokens is none.
    """
    requests, vocabulary = [sampler.request for sampler in samplers], logits.shape[-1]
    values = [
        [max(r.temperature, COLDEST) for r in requests],
        points,
        [min(r.top_k if r.top_k > 0 else vocabulary, vocabulary) for r in requests],
        [r.top_p for r in requests],
        [r.min_p for r in requests],
    ]
    return send(torch.tensor(values, dtype=torch.float64), logits.device)[..., None]


def _draw(logits: Tensor, settings: Tensor) -> Tensor:
    """One token per row from the whole distribution."""
    temperature, points = settings[0].float(), settings[1]
    return _pick(torch.softmax(logits / temperature, -1), points)


def _draw_filtered(logits: Tensor, settings: Tensor, size: int) -> Tensor:
    """One token per row from what top_k, top_p and min_p leave of the `size` likeliest; -1 - token where others might
    have been left, too."""
    temperature, points = settings[0].float(), settings[1]
    probabilities, ids, settled = _candidates(logits / temperature, settings, min(size, logits.shape[-1]))
    chosen = ids.gather(1, _pick(probabilities, points)[:, None])[:, 0]
    return torch.where(settled, chosen, -1 - chosen)


def _candidates(logits: Tensor, settings: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `size` likeliest tokens with the probabilities that are left to them: [rows, size] each.

    Also whether they settle the row: [rows], True where no token beyond them could be kept.
    """
    vocabulary = logits.shape[-1]
    top_k, top_p, min_p = settings[2:].float()
    values, ids = logits.topk(size, dim=-1)
    inside = torch.arange(size, device=logits.device) < top_k
    values = values.masked_fill(~inside, -torch.inf)
    # top_p is a share of what top_k leaves: of the candidates, unless top_k leaves everything
    whole = torch.where(top_k < vocabulary, values.logsumexp(-1, keepdim=True), logits.logsumexp(-1, keepdim=True))
    probabilities = torch.exp(values - whole)
    total = probabilities.cumsum(-1)
    kept = inside & (total - probabilities < top_p) & (probabilities >= min_p * probabilities[:, :1])
    kept[:, 0] = True  # the likeliest token always stays
    beyond = (top_k > size) & kept[:, -1:] & (total[:, -1:] < top_p)
    return probabilities * kept, ids, ~beyond[:, 0]


def _pick(probabilities: Tensor, points: Tensor) -> Tensor:
    """The index in each row where the running sum passes `points` (0 … 1) of the whole: [rows]."""
    total = probabilities.cumsum(-1, dtype=torch.float64)
    at = torch.searchsorted(total, points * total[:, -1:], right=True)[:, 0]
    return at.clamp_(max=probabilities.shape[-1] - 1)
