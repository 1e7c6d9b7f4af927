"""Rotary positions (Su et al. 2021, arXiv 2104.09864), in float32 whatever the precision of the model.

A frequency rounded to bfloat16 is off by up to .4 %: over 16,000 tokens that is several turns. Cosines and sines so
rounded are off by as much, each in its own way, and a score no longer depends on the distance of two tokens alone.
transformers rounds frequencies, cosines and the rotation with the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def _turned(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    full = x.to(torch.promote_types(x.dtype, cos.dtype))
    half = x.shape[-1] // 2
    turned = full * cos
    turned[..., :half].addcmul_(full[..., half:], sin[..., :half], value=-direction)
    turned[..., half:].addcmul_(full[..., :half], sin[..., half:], value=direction)
    return turned.to(x.dtype)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, sin, -1), None, None  # a rotation's adjoint turns back


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [..., width], each pair (i, i + width / 2) turned by its angle; in the precision of `cos` at
    least, and returned in that of x.

    `cos` and `sin` [..., width] hold the angles twice, as transformers has them, and are broadcast to x; they are not
    differentiated.
    """
    return _Rotation.apply(x, cos, sin)


class RotaryPositions(nn.Module):
    """transformers' LlamaRotaryEmbedding, with its frequencies and attention scaling, which never leaves float32."""

    inv_freq: Tensor

    def __init__(self, rotary: Any) -> None:
        super().__init__()
        self.register_buffer("inv_freq", rotary.inv_freq.float(), persistent=False)
        self.attention_scaling = float(rotary.attention_scaling)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RotaryPositions:
        """What `module.to` calls: the frequencies follow the model to its device, not to its precision."""
        kept = self.inv_freq
        super()._apply(fn, recurse)
        self.inv_freq = kept.to(self.inv_freq.device)
        return self

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, float32 [batch, length, head width], of `position_ids` [batch, length]; x is not used."""
        angles = position_ids.unsqueeze(-1).float() * self.inv_freq
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
