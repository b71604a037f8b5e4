"""How the next token is chosen: penalties, temperature, top-k, top-p, min-p, in transformers' order, and a draw.

Rows of a step are drawn together, each with its own settings and its own random numbers: one number per token, so that
a seed gives the same answer whatever else is in the batch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from alpaca.serving.request import GenerationRequest

GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: neighbouring seeds and answers land far apart
CANDIDATES = 256  # likeliest tokens looked at first; where they can't settle it, the whole vocabulary is sorted
COLDEST = 1e-4  # a temperature below this would overflow; it takes the likeliest token all the same


def answer_seed(seed: int, answer: int) -> int:
    """The seed of answer number `answer` (from 0); the first has the request's own."""
    return (seed + answer * GOLDEN) % 2**64


class Sampler:
    """The settings of one answer, what it has said so far, and its random numbers."""

    def __init__(
        self,
        request: GenerationRequest,
        prompt: Sequence[int],
        *,
        seed: int,
        eos_ids: Sequence[int],
        vocabulary: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.request = request
        self.seed = seed
        self._random = random.Random(seed)
        self._eos_ids = list(eos_ids)
        self._tokens = 0
        self._seen: Tensor | None = None
        self._counts: Tensor | None = None
        if request.repetition_penalty != 1.0:
            self._seen = torch.zeros(vocabulary, dtype=torch.bool, device=device)
            self._seen[torch.tensor(prompt, device=device)] = True
        if request.presence_penalty or request.frequency_penalty:
            self._counts = torch.zeros(vocabulary, device=device)

    @property
    def greedy(self) -> bool:
        return self.request.temperature == 0.0

    @property
    def filtered(self) -> bool:
        """Whether some tokens are ruled out before the draw."""
        request = self.request
        return request.top_k > 0 or request.top_p < 1.0 or request.min_p > 0.0

    def penalise(self, scores: Tensor) -> None:
        """Change one row of logits [vocabulary] in place.

        Repetition counts the prompt too and divides (arXiv:1909.05858); presence and frequency are subtracted for
        tokens of the answer, once and as often as they occurred.
        """
        request = self.request
        if self._seen is not None:
            by = request.repetition_penalty
            scores.copy_(torch.where(self._seen, torch.where(scores < 0, scores * by, scores / by), scores))
        if self._counts is not None:
            scores -= request.presence_penalty * (self._counts > 0) + request.frequency_penalty * self._counts
        if self._tokens < request.min_tokens:
            scores[self._eos_ids] = -torch.inf

    def draw(self) -> float:
        """The next random number, from 0 up to but not including 1."""
        return self._random.random()

    def accept(self, token: int) -> None:
        """Take note of the chosen token."""
        self._tokens += 1
        if self._seen is not None:
            self._seen[token] = True
        if self._counts is not None:
            self._counts[token] += 1


def choose(logits: Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """The next token of every row. logits [rows, vocabulary] in fp32 are changed in place."""
    for row, sampler in zip(logits, samplers, strict=True):
        sampler.penalise(row)
    chosen = logits.argmax(-1)
    for filtered in (False, True):
        rows = [n for n, s in enumerate(samplers) if not s.greedy and s.filtered is filtered]
        if rows:
            drawn = (_draw_filtered if filtered else _draw)(logits[rows], [samplers[n] for n in rows])
            chosen[rows] = drawn
    tokens: list[int] = chosen.tolist()
    for token, sampler in zip(tokens, samplers, strict=True):
        sampler.accept(token)
    return tokens


def _draw(logits: Tensor, samplers: Sequence[Sampler]) -> Tensor:
    """One token per row from the whole distribution."""
    temperature = _column([max(s.request.temperature, COLDEST) for s in samplers], logits)
    points = _column([s.draw() for s in samplers], logits, torch.float64)  # in fp32 the largest would be 1
    return _pick(torch.softmax(logits / temperature, -1), points)


def _draw_filtered(logits: Tensor, samplers: Sequence[Sampler]) -> Tensor:
    """One token per row from what top_k, top_p and min_p leave."""
    requests = [s.request for s in samplers]
    logits = logits / _column([max(r.temperature, COLDEST) for r in requests], logits)
    points = _column([s.draw() for s in samplers], logits, torch.float64)  # in fp32 the largest would be 1
    size = min(logits.shape[-1], max(CANDIDATES, *(r.top_k for r in requests), 0))
    probabilities, ids, settled = _candidates(logits, requests, size)
    chosen = ids.gather(1, _pick(probabilities, points)[:, None])[:, 0]
    unsettled = (~settled).nonzero()[:, 0].tolist()
    if unsettled:
        rest = [requests[n] for n in unsettled]
        probabilities, ids, _ = _candidates(logits[unsettled], rest, logits.shape[-1])
        chosen[unsettled] = ids.gather(1, _pick(probabilities, points[unsettled])[:, None])[:, 0]
    return chosen


def _candidates(logits: Tensor, requests: Sequence[GenerationRequest], size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `size` likeliest tokens with the probabilities that are left to them: [rows, size] each.

    Also whether they settle the row: [rows], True where no token beyond them could be kept.
    """
    vocabulary = logits.shape[-1]
    top_k = _column([min(r.top_k if r.top_k > 0 else vocabulary, vocabulary) for r in requests], logits)
    top_p = _column([r.top_p for r in requests], logits)
    min_p = _column([r.min_p for r in requests], logits)
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


def _column(values: Sequence[float], like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=like.device)[:, None]
