"""Greedy answers of a model in memory, by transformers' own generate(), with the log-probability of every token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

TOGETHER = 20  # prompts in a batch: a step reads all weights, for one answer as for many


@dataclass(frozen=True)
class Greedy:
    """An answer's ids, the end included where there is one; the log-probability of each, and its lead over the second
    choice, in nats."""

    tokens: list[int]
    logprobs: list[float]
    margins: list[float]
    ended: bool


def greedy_answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    most: Sequence[int],
    ends: Sequence[int],
    done: Callable[[int], object] = lambda count: None,
) -> list[Greedy]:
    """Answer every prompt (ids) with at most `most` tokens, ending at any of `ends`; in the order given."""
    order = sorted(range(len(prompts)), key=lambda number: (most[number], len(prompts[number])))
    found: dict[int, Greedy] = {}
    while order:
        size = most[order[0]]
        batch = [number for number in order[:TOGETHER] if most[number] == size]
        order = order[len(batch) :]
        answers = _batch(model, [prompts[number] for number in batch], size, list(ends))
        found |= dict(zip(batch, answers, strict=True))
        done(len(batch))
    return [found[number] for number in range(len(prompts))]


def _batch(model: Any, prompts: list[Sequence[int]], most: int, ends: list[int]) -> list[Greedy]:
    import torch
    from transformers import GenerationConfig, LogitsProcessorList

    width = max(map(len, prompts))
    ids = torch.tensor([[ends[0]] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    notes = _Notes()
    config = GenerationConfig(do_sample=False, max_new_tokens=most, eos_token_id=ends, pad_token_id=ends[0])
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config,
            logits_processor=LogitsProcessorList([notes]),
        )  # fmt: skip
    return [notes.answer(row, tokens, ends) for row, tokens in enumerate(out[:, width:].tolist())]


class _Notes:
    """Sees the logits of each step and changes nothing about them."""

    def __init__(self) -> None:
        self._steps: list[tuple[list[float], list[float]]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        two = scores.float().topk(2, dim=-1).values
        total = scores.float().logsumexp(-1)
        self._steps.append(((two[:, 0] - total).tolist(), (two[:, 0] - two[:, 1]).tolist()))
        return scores

    def answer(self, row: int, tokens: list[int], ends: list[int]) -> Greedy:
        count = next((place + 1 for place, token in enumerate(tokens) if token in ends), len(tokens))
        logprobs, margins = ([step[which][row] for step in self._steps[:count]] for which in (0, 1))
        return Greedy(tokens[:count], logprobs, margins, tokens[count - 1] in ends)


def mean_loss(model: Any, references: Sequence[tuple[Sequence[int], Sequence[int]]]) -> float | None:
    """Mean negative log-likelihood per token of answers after their prompts (ids); None without any."""
    import torch

    total, count = 0.0, 0
    with torch.inference_mode():
        for prompt, answer in references:
            ids = torch.tensor([[*prompt, *answer]], device=model.device)
            logits = model(input_ids=ids, logits_to_keep=len(answer) + 1).logits[0, :-1].float()
            chosen = logits.gather(1, ids[0, len(prompt) :, None])[:, 0]
            total += float((logits.logsumexp(-1) - chosen).sum())
            count += len(answer)
    return total / count if count else None
