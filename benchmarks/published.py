"""Baselines: the operators as others publish them."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.models.mamba.modeling_mamba import mamba_selective_scan


def long_convolution(u: Tensor, kernel: Tensor, skip: Tensor) -> Tensor:
    """Hyena's (safari, HyenaDNA): transforms of twice the length, all channels at once, every spectrum kept."""
    length = u.shape[-1]
    spectrum = torch.fft.rfft(kernel, n=2 * length) / (2 * length)
    y = torch.fft.irfft(torch.fft.rfft(u, n=2 * length) * spectrum, n=2 * length, norm="forward")[..., :length]
    return y + u * skip.unsqueeze(-1)


def selective_scan(
    u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, use_mambapy: bool = False
) -> Tensor:
    """transformers': a loop with a quadratic backward, or mamba.py's parallel scan, which holds every state."""
    u, delta, b, c = (x.transpose(1, 2) for x in (u, delta, b, c))
    return mamba_selective_scan(u, delta, a, b, c, d, use_mambapy=use_mambapy).transpose(1, 2)


def token_loss(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of all logits at once."""
    return torch.nn.functional.cross_entropy((states @ weight.t()).float(), targets, reduction="sum")
