"""The short depthwise convolution in front of Mamba's scan and Hyena's long convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def depthwise_causal_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """y_t = bias + sum_k weight_k x_{t-K+1+k}: x [batch, length, channels], weight [channels, K], bias [channels].

    Shift-and-add: on CPU 3-4 times faster than `F.conv1d` with groups, and no transposes around it. In the weights'
    precision, cast once: under CUDA's autocast every tap would otherwise keep a float32 copy of its own.
    """
    kernel, length = weight.shape[1], x.shape[1]
    padded = F.pad(x.to(weight.dtype), (0, 0, kernel - 1, 0))
    y = bias + padded[:, :length] * weight[:, 0]
    for k in range(1, kernel):
        y = torch.addcmul(y, padded[:, k : k + length], weight[:, k])
    return y
