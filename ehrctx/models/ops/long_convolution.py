"""Causal convolution of a sequence with a filter as long as itself, by FFT (the long convolution of Hyena).

Linear, not circular: both are padded with zeros to at least twice the length. The transforms run in float32 whatever
the precision around them, since a bfloat16 filter alone costs three digits. Only the real inputs are kept for the
backward, which computes the spectra again, a block of channels at a time: a third of the memory of keeping them.

An FFT mixes all positions, so it is causal up to rounding only, and it cannot be reset between subjects: windows of
different subjects must not share a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CELLS = 2**20  # complex numbers of one spectrum held at a time


@cache
def fast_length(n: int) -> int:
    """The smallest even 2^a 3^b 5^c that is at least n >= 1: lengths for which a real FFT is fast."""
    best = 1 << (n - 1).bit_length()
    odd = [3**b * 5**c for b in range(13) for c in range(9)]
    for factor in odd:
        if factor < best:
            power = max(0, (-(-n // factor) - 1).bit_length())
            best = min(best, factor << max(power, 1))
    return best


def _blocks(batch: int, channels: int, n: int) -> Iterator[slice]:
    width = max(1, _CELLS // (batch * n))
    for first in range(0, channels, width):
        yield slice(first, first + width)


class _LongConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, kernel: Tensor) -> Tensor:
        ctx.save_for_backward(u, kernel)
        length = u.shape[-1]
        n = fast_length(2 * length)
        y = torch.empty_like(u)
        for block in _blocks(u.shape[0], u.shape[1], n):
            spectrum = torch.fft.rfft(u[:, block], n=n).mul_(torch.fft.rfft(kernel[block], n=n))
            y[:, block] = torch.fft.irfft(spectrum, n=n)[..., :length]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        u, kernel = ctx.saved_tensors
        length = u.shape[-1]
        n = fast_length(2 * length)
        grad_u, grad_kernel = torch.empty_like(u), torch.empty_like(kernel)
        for block in _blocks(u.shape[0], u.shape[1], n):
            # a convolution's adjoint is a correlation: the conjugate spectrum
            spectrum = torch.fft.rfft(grad[:, block], n=n)
            of_kernel = (spectrum * torch.fft.rfft(u[:, block], n=n).conj()).sum(0)
            grad_kernel[block] = torch.fft.irfft(of_kernel, n=n)[..., :length]
            spectrum.mul_(torch.fft.rfft(kernel[block], n=n).conj())
            grad_u[:, block] = torch.fft.irfft(spectrum, n=n)[..., :length]
        return grad_u, grad_kernel


def long_convolution(u: Tensor, kernel: Tensor, skip: Tensor) -> Tensor:
    """y_t = skip u_t + sum_{s <= t} kernel_s u_{t-s}, per channel.

    u [batch, channels, length], kernel [channels, length] (lag 0 first), skip [channels]; returns u's shape and dtype.
    """
    with torch.autocast(u.device.type, enabled=False):
        full = u.float()
        y = _LongConvolution.apply(full, kernel.float()) + full * skip.float().unsqueeze(-1)
    return y.to(u.dtype)
