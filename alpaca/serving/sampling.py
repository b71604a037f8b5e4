"""How the next token is chosen: transformers' processors in transformers' order, and a draw of our own at the end.

The draw uses the answer's own random numbers, so that a seed gives the same answer whatever else the process does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from alpaca.serving.request import GenerationRequest

GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: neighbouring seeds and answers land far apart


class Draw(LogitsProcessor):
    """Draws one token per row and leaves it as the only possible one, so that a greedy choice takes it."""

    def __init__(self, seed: int) -> None:
        self._random = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores`: [rows, vocabulary], processed logits; returns the same shape, 0 at the drawn token, else -inf."""
        probabilities = torch.softmax(scores.float(), dim=-1).cpu()
        drawn = torch.multinomial(probabilities, 1, generator=self._random).to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter_(-1, drawn, 0.0)


def answer_seed(seed: int, answer: int) -> int:
    """The seed of answer number `answer` (from 0); the first has the request's own."""
    return (seed + answer * GOLDEN) % 2**64


def processors(
    request: GenerationRequest, *, prompt_length: int, eos_ids: Sequence[int], seed: int, device: torch.device
) -> LogitsProcessorList:
    """Everything between the model's logits and the choice of a token; temperature 0 leaves the choice greedy."""
    chain = LogitsProcessorList()
    if request.repetition_penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(request.repetition_penalty))
    if request.min_tokens:
        ends = list(eos_ids)
        chain.append(MinNewTokensLengthLogitsProcessor(prompt_length, request.min_tokens, ends, device=str(device)))
    if request.temperature == 0.0:
        return chain
    chain.append(TemperatureLogitsWarper(max(request.temperature, 1e-4)))
    if request.top_k:
        chain.append(TopKLogitsWarper(request.top_k))
    if request.top_p < 1.0:
        chain.append(TopPLogitsWarper(request.top_p))
    if request.min_p > 0.0:
        chain.append(MinPLogitsWarper(request.min_p))
    chain.append(Draw(seed))
    return chain
