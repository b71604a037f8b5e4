"""Losses from hidden states, the head applied a chunk of labelled positions at a time: cross-entropy to what the data
says, and divergence from what a teacher says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

CHUNK_LOGITS = 6 << 20  # logits made at a time: 25 MB in fp32


class HeadLoss(torch.autograd.Function):
    """Sum over positions of -log softmax(hidden · headᵀ)[target].

    hidden [positions, width], head [vocabulary, width], targets [positions] → scalar in fp32. The logits are never
    all there: each chunk's gradients are taken while its logits are at hand, with respect to `hidden` and, where the
    head is trained, to `head`. Products are in the dtype of `hidden`; the head may be wider, and so is its gradient.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_head = torch.zeros_like(head) if ctx.needs_input_grad[1] else None
        head = head.to(hidden.dtype)
        rows = max(1, CHUNK_LOGITS // head.shape[0])
        for start in range(0, hidden.shape[0], rows):
            part, wanted = hidden[start : start + rows], targets[start : start + rows, None]
            log_probability = torch.log_softmax(functional.linear(part, head), dim=-1, dtype=torch.float32)
            total -= log_probability.gather(1, wanted).sum()
            if grad is None and grad_head is None:
                continue
            probability = log_probability.exp_()
            probability.scatter_add_(1, wanted, probability.new_full(wanted.shape, -1.0))
            grad_logits = probability.to(hidden.dtype)
            if grad is not None:
                torch.mm(grad_logits, head, out=grad[start : start + rows])
            if grad_head is not None:
                grad_head += grad_logits.t() @ part
        ctx.save_for_backward(grad, grad_head)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad, grad_head = (None if saved is None else saved * grad_total.to(saved.dtype) for saved in ctx.saved_tensors)
        return grad, grad_head, None


def head_loss(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy of `targets` [positions] under `hidden` [positions, width] · `head`ᵀ, fp32."""
    total: Tensor = HeadLoss.apply(hidden, head, targets)
    return total


class HeadDivergence(torch.autograd.Function):
    """Sum over positions of KL(teacher ‖ model), both softmax(hidden · headᵀ) with the same frozen head.

    hidden and teacher [positions, width], head [vocabulary, width] → scalar in fp32, over the whole vocabulary. Its
    gradient with respect to the logits is the model's probabilities less the teacher's. None flows to the teacher.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, teacher: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        rows = max(1, CHUNK_LOGITS // head.shape[0] // 2)  # two sets of logits are there at a time
        for start in range(0, hidden.shape[0], rows):
            ours, theirs = (
                torch.log_softmax(functional.linear(states[start : start + rows], head), dim=-1, dtype=torch.float32)
                for states in (hidden, teacher)
            )
            wanted = theirs.exp()
            total += (wanted * (theirs - ours)).sum()
            if grad is not None:
                torch.mm(ours.exp_().sub_(wanted).to(hidden.dtype), head, out=grad[start : start + rows])
        if grad is not None:
            ctx.save_for_backward(grad)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grad_total.to(grad.dtype), None, None


def head_divergence(hidden: Tensor, head: Tensor, teacher: Tensor) -> Tensor:
    """Summed KL(teacher ‖ model) of next tokens, from hidden states [positions, width] · `head`ᵀ, fp32."""
    total: Tensor = HeadDivergence.apply(hidden, head, teacher)
    return total
