"""Root-mean-square normalisation (Zhang and Sennrich 2019, arXiv 1910.07467), as Llama and Mamba use it.

transformers writes it as six operators, each of which autograd answers with more, and keeps four tensors of the input's
size. On CPU ours passes over the input half as often and keeps the input and one number per position; on CUDA torch has
its own kernel.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.reshape(-1, x.shape[-1]).to(dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        full = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
        rows = _rows(x, full)
        # vector_norm squares and sums in one pass, without a tensor of squares
        squares = torch.linalg.vector_norm(rows, dim=1, keepdim=True).square_()
        inverse = squares.div_(rows.shape[1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (rows * inverse).mul_(weight.to(full)).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        x, weight, inverse = ctx.saved_tensors
        rows, scale, grad = _rows(x, inverse.dtype), weight.to(inverse.dtype), _rows(grad, inverse.dtype)
        product = grad * rows
        grad_weight = product.t() @ inverse.squeeze(1)
        # d(inverse)/dx = -inverse^3 x / width
        through_norm = (product @ scale).unsqueeze(1) * inverse**3 / -rows.shape[1]
        grad_x = torch.mul(grad, scale, out=product).mul_(inverse).addcmul_(rows, through_norm)
        return grad_x.view(x.shape).to(x.dtype), grad_weight.to(weight.dtype), None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight x / sqrt(mean(x^2) + eps): x [..., width], weight [width]; x's shape, in the wider of the two precisions.

    Computed in float32 at least, and rounded once at the end.
    """
    dtype = torch.promote_types(x.dtype, weight.dtype)
    if x.is_cuda:
        return F.rms_norm(x.to(dtype), weight.shape, weight.to(dtype), eps).to(dtype)
    return _RMSNorm.apply(x, weight, eps).to(dtype)


class RMSNorm(nn.Module):
    """transformers' LlamaRMSNorm and MambaRMSNorm, which are the same (same parameter), by `rms_norm`."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, float(norm.variance_epsilon)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """hidden_states [..., width] -> the same shape."""
        return rms_norm(hidden_states, self.weight, self.eps)
