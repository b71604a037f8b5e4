"""Layers that keep for the backward pass only what they can't compute again.

Most of what autograd saves by default is not needed: over a frozen base, a LoRA layer needs its input and the
rank-sized product; SwiGLU needs its two inputs, RMSNorm its input and one number per row, trained or not. The forward
results are those of the layers they stand for, operation by operation.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.activations import SiLUActivation

# Root-mean-square norms of this exact form (weight · x / rms); Gemma's, for one, adds 1 to the weight.
SILUS = (nn.SiLU, SiLUActivation)
RMS_NORMS = {"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"}


class LoraFunction(torch.autograd.Function):
    """y = x Wᵀ + b + s (x Aᵀ) Bᵀ for x [tokens, in], frozen W [out, in], A [r, in], B [out, r]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        inner = x @ a.t()
        ctx.save_for_backward(x, weight, a, b, inner)
        ctx.scaling = scaling
        return functional.linear(x, weight, bias).addmm_(inner, b.t(), alpha=scaling)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, inner = ctx.saved_tensors
        grad_inner = (grad @ b).mul_(ctx.scaling)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_inner, a)
        return grad_x, None, None, grad_inner.t() @ x, (grad.t() @ inner).mul_(ctx.scaling), None


class SwigluFunction(torch.autograd.Function):
    """h = silu(gate) · up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return swiglu_backward(grad, gate, up)


def swiglu_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of silu(gate) · up with respect to gate and up."""
    grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
    return grad_gate, functional.silu(gate).mul_(grad)


class SwigluLoraFunction(torch.autograd.Function):
    """LoraFunction of h = silu(gate) · up; h is computed again in the backward pass instead of kept."""

    @staticmethod
    def forward(
        ctx: Any, gate: Tensor, up: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        hidden = functional.silu(gate).mul_(up)
        inner = hidden @ a.t()
        ctx.save_for_backward(gate, up, weight, a, b, inner)
        ctx.scaling = scaling
        return functional.linear(hidden, weight, bias).addmm_(inner, b.t(), alpha=scaling)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, weight, a, b, inner = ctx.saved_tensors
        grad_inner = (grad @ b).mul_(ctx.scaling)
        grad_hidden = (grad @ weight).addmm_(grad_inner, a)
        hidden = functional.silu(gate).mul_(up)
        grad_a = grad_inner.t() @ hidden
        del hidden
        grad_gate, grad_up = swiglu_backward(grad_hidden, gate, up)
        return grad_gate, grad_up, None, None, grad_a, (grad.t() @ inner).mul_(ctx.scaling), None


class RmsNormFunction(torch.autograd.Function):
    """y = weight · x / sqrt(mean(x²) + eps), the mean and the division in fp32, as Hugging Face's layers do it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, scale)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        normed = x.float().mul_(scale)
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * normed).reshape(-1, len(weight)).sum(0).to(weight.dtype)
        grad_normed = (grad * weight).float()
        along = (grad_normed * normed).mean(-1, keepdim=True)
        return grad_normed.sub_(normed.mul_(along)).mul_(scale).to(x.dtype), grad_weight, None


class LeanLoraLinear(lora.Linear):
    """PEFT's LoRA layer with a forward that keeps only its input; PEFT's own in every case this one does not cover."""

    def lean_parts(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor, float] | None:
        """(W, bias, A, B, scaling) of the active adapters in the base's dtype, or None where PEFT's own forward is
        needed."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or not names:
            return None
        for name in names:
            if (isinstance(self.lora_dropout[name], nn.Dropout) and self.training) or name in self.lora_variant:
                return None
        dense: Any = self.base_layer
        parts: list[tuple[Any, Any]] = [(self.lora_A[name], self.lora_B[name]) for name in names]
        a_s, b_s = ([part.weight.to(dense.weight.dtype) for part in side] for side in zip(*parts, strict=True))
        if len(names) == 1:
            return dense.weight, dense.bias, a_s[0], b_s[0], self.scaling[names[0]]
        scaled = [b * self.scaling[name] for name, b in zip(names, b_s, strict=True)]
        return dense.weight, dense.bias, torch.cat(a_s), torch.cat(scaled, dim=1), 1.0  # one of all their ranks

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        parts = self.lean_parts() if not args and not kwargs else None
        if parts is None:
            return super().forward(x, *args, **kwargs)
        out: Tensor = LoraFunction.apply(x.reshape(-1, x.shape[-1]), *parts)
        return out.view(*x.shape[:-1], -1)


class LeanSwiglu(nn.Module):
    """down(silu(gate(x)) · up(x)) with the children's names of LlamaMLP, so that module paths stay as they are."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        parts = self.down_proj.lean_parts() if isinstance(self.down_proj, LeanLoraLinear) else None
        if parts is None:
            out: Tensor = self.down_proj(SwigluFunction.apply(gate, up))
            return out
        out = SwigluLoraFunction.apply(gate.reshape(-1, gate.shape[-1]), up.reshape(-1, up.shape[-1]), *parts)
        return out.view(*x.shape[:-1], -1)


class LeanRmsNorm(nn.Module):
    """A root-mean-square norm."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = RmsNormFunction.apply(x, self.weight, self.eps)
        return out


def make_lean(model: nn.Module) -> nn.Module:
    """Put the lean forms of RMSNorm and SwiGLU into a model in place; parameter names stay as they were."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ in RMS_NORMS:
                setattr(module, name, LeanRmsNorm(child))
            elif _is_swiglu(child):
                setattr(module, name, LeanSwiglu(child))
    return model


def _is_swiglu(module: nn.Module) -> bool:
    names = {name for name, _ in module.named_children()}
    return {"gate_proj", "up_proj", "down_proj"} <= names and type(getattr(module, "act_fn", None)) in SILUS


def lean_lora(config: lora.LoraConfig) -> lora.LoraConfig:
    """Tell PEFT to build LeanLoraLinear around linear layers. Not for a quantised base: its layers are Linears too."""
    config._register_custom_module({nn.Linear: LeanLoraLinear})
    return config
