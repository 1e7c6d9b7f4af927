"""The selective scan as its equations stand, one step after another: what every backend is held against, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

NAMES = ("u", "delta", "a", "b", "c", "d")


def reference(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    state = u.new_zeros(u.shape[0], u.shape[2], a.shape[1])
    y = []
    for t in range(u.shape[1]):
        decay = torch.exp(delta[:, t, :, None] * a)
        state = decay * state + (delta[:, t] * u[:, t]).unsqueeze(2) * b[:, t, None]
        y.append((state * c[:, t, None]).sum(2) + d * u[:, t])
    return torch.stack(y, 1)
