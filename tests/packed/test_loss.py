"""HeadLoss is cross-entropy and HeadDivergence is KL, whatever the size of their chunks."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from alpaca.packed import loss
from alpaca.packed.loss import head_divergence, head_loss

VOCABULARY = 50


@pytest.mark.parametrize("rows_in_chunk", [0.5, 1, 2, 6, 7, 8, 1000])
def test_loss_and_gradient_equal_cross_entropy_at_every_chunk_size(
    monkeypatch: pytest.MonkeyPatch, rows_in_chunk: float
) -> None:
    monkeypatch.setattr(loss, "CHUNK_LOGITS", int(rows_in_chunk * VOCABULARY))
    torch.manual_seed(0)
    head, targets = torch.randn(VOCABULARY, 8), torch.randint(0, VOCABULARY, (7,))
    hidden, plain = torch.randn(7, 8).requires_grad_(), None
    plain = hidden.detach().clone().requires_grad_()
    ours = head_loss(hidden, head, targets)
    theirs = functional.cross_entropy(plain @ head.t(), targets, reduction="sum")
    torch.testing.assert_close(ours, theirs)
    (ours * 0.3).backward()
    (theirs * 0.3).backward()
    torch.testing.assert_close(hidden.grad, plain.grad)


def test_gradient_by_finite_differences() -> None:
    torch.manual_seed(0)
    head, targets = torch.randn(9, 4, dtype=torch.float64), torch.tensor([0, 8, 3])
    hidden = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h: head_loss(h, head, targets), (hidden,), eps=1e-2, atol=1e-2, rtol=1e-2)


def test_bf16_hidden_states_give_an_fp32_loss_and_bf16_gradients() -> None:
    torch.manual_seed(0)
    head, targets = torch.randn(VOCABULARY, 8).bfloat16(), torch.randint(0, VOCABULARY, (7,))
    hidden = torch.randn(7, 8).bfloat16().requires_grad_()
    ours = head_loss(hidden, head, targets)
    ours.backward()
    assert ours.dtype == torch.float32
    assert hidden.grad is not None and hidden.grad.dtype == torch.bfloat16
    plain = hidden.detach().float().requires_grad_()
    functional.cross_entropy(plain @ head.float().t(), targets, reduction="sum").backward()
    torch.testing.assert_close(hidden.grad.float(), plain.grad, atol=5e-2, rtol=5e-2)


def test_without_gradients_none_is_kept() -> None:
    hidden, head = torch.randn(3, 4), torch.randn(9, 4)
    assert not head_loss(hidden, head, torch.tensor([1, 2, 3])).requires_grad


def test_extreme_logits_stay_finite() -> None:
    hidden, head = torch.full((2, 4), 1e4).requires_grad_(), torch.randn(9, 4)
    total = head_loss(hidden, head, torch.tensor([0, 1]))
    total.backward()
    assert torch.isfinite(total) and hidden.grad is not None and torch.isfinite(hidden.grad).all()


# --- divergence ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rows_in_chunk", [0.5, 2, 4, 12, 14, 16, 1000])
def test_divergence_and_its_gradient_equal_the_library_s_at_every_chunk_size(
    monkeypatch: pytest.MonkeyPatch, rows_in_chunk: float
) -> None:
    monkeypatch.setattr(loss, "CHUNK_LOGITS", int(rows_in_chunk * VOCABULARY))
    torch.manual_seed(0)
    head, teacher = torch.randn(VOCABULARY, 8), torch.randn(7, 8)
    hidden = torch.randn(7, 8).requires_grad_()
    plain = hidden.detach().clone().requires_grad_()
    ours = head_divergence(hidden, head, teacher)
    ours_log, theirs_log = (torch.log_softmax(states @ head.t(), dim=-1) for states in (plain, teacher))
    theirs = functional.kl_div(ours_log, theirs_log, reduction="sum", log_target=True)
    torch.testing.assert_close(ours, theirs)
    (ours * 0.3).backward()
    (theirs * 0.3).backward()
    assert hidden.grad is not None and float(hidden.grad.abs().max()) > 0.1
    torch.testing.assert_close(hidden.grad, plain.grad)


def test_what_says_the_same_does_not_diverge() -> None:
    torch.manual_seed(0)
    head, hidden = torch.randn(VOCABULARY, 8), torch.randn(7, 8).requires_grad_()
    total = head_divergence(hidden, head, hidden.detach())
    total.backward()
    assert total.item() == 0 and hidden.grad is not None and not hidden.grad.any()


def test_divergence_of_extreme_logits_and_of_nothing_stays_finite() -> None:
    hidden, head = torch.full((2, 4), 1e4).requires_grad_(), torch.randn(9, 4)
    for states in (hidden, hidden[:0]):
        total = head_divergence(states, head, -states.detach())
        total.backward()
        assert torch.isfinite(total) and hidden.grad is not None and torch.isfinite(hidden.grad).all()
