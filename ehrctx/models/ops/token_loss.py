"""Next-token cross-entropy that never holds the logits of more than one chunk of positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ehrctx.models.ops.linear import onednn_products

CHUNK = 1024  # positions, at most
_CELLS = 2**24  # logits held at a time: 64 MiB


def chunk_of(vocabulary: int) -> int:
    """How many positions have their logits held at a time."""
    return min(CHUNK, max(64, _CELLS // vocabulary))


class _TokenLoss(torch.autograd.Function):
    @staticmethod
    @onednn_products()
    def forward(ctx: Any, states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        wants = any(ctx.needs_input_grad[:2])
        grad_states = torch.empty_like(states) if wants else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants else None
        size = chunk_of(len(weight))
        for start in range(0, len(states), size):
            chunk = slice(start, start + size)
            logits = (states[chunk] @ weight.t()).float()
            log_normalizer = logits.logsumexp(1, keepdim=True)
            wanted = targets[chunk].unsqueeze(1)
            total += (log_normalizer - logits.gather(1, wanted)).sum()
            if grad_states is not None and grad_weight is not None:
                # d(loss)/d(logits) = softmax - one-hot, here rather than in the backward: logits are computed once
                grad_logits = logits.sub_(log_normalizer).exp_()
                grad_logits.scatter_add_(1, wanted, torch.full_like(wanted, -1.0, dtype=grad_logits.dtype))
                grad_logits = grad_logits.to(states.dtype)
                grad_states[chunk] = grad_logits @ weight.to(states.dtype)
                if grad_logits.dtype == torch.float32:
                    grad_weight.addmm_(grad_logits.t(), states[chunk])  # no second matrix of the weight's size
                else:
                    grad_weight += grad_logits.t() @ states[chunk]
        if wants:
            ctx.save_for_backward(grad_states, grad_weight)
            ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_states, grad_weight = ctx.saved_tensors
        return grad_states * grad.to(grad_states.dtype), (grad_weight * grad).to(ctx.weight_dtype), None


def token_loss(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Sum of the cross-entropies (nats, float32 scalar) of `targets` int64[n] under `states` [n, D] @ `weight` [V, D]ᵀ.

    Equal to `torch.nn.functional.cross_entropy(states @ weight.t(), targets, reduction="sum")`.
    """
    return _TokenLoss.apply(states, weight, targets)


@torch.no_grad()
@onednn_products()
def token_losses(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy (nats) of each of `targets` int64[n] under `states` [n, D] @ `weight` [V, D]ᵀ; float32[n]."""
    out = torch.empty(len(targets), dtype=torch.float32, device=states.device)
    size = chunk_of(len(weight))
    for start in range(0, len(targets), size):
        chunk = slice(start, start + size)
        logits = (states[chunk] @ weight.t().to(states.dtype)).float()
        out[chunk] = logits.logsumexp(1) - logits.gather(1, targets[chunk].unsqueeze(1)).squeeze(1)
    return out
