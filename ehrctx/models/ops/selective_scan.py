"""Mamba's selective scan, chunked and recomputing: the entry point, and the version in plain torch.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,    y_t = C_t h_t + D u_t          (Gu & Dao 2023, eq. 2, Alg. 2)

Only the states at chunk boundaries are kept; the backward recomputes those inside a chunk. Memory is then O(L / chunk)
instead of O(L), and the backward O(L) where transformers' loop is O(L^2). The layout has time outermost, then batch,
state, and channels innermost, so that each step is one in-place `addcmul_` over contiguous rows. The closed form by
ratios of cumulative sums is not used: it overflows to NaN for large delta.

On CPU, numba kernels (`selective_scan_numba.py`) do the same 5-6 times faster. On CUDA, mamba-ssm's kernel serves where
it is built, else our own Triton kernels (`selective_scan_triton.py`). Plain torch serves everything else.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

logger = logging.getLogger(__name__)

# The best first; torch runs anywhere.
BACKENDS = ("mamba_ssm", "triton", "numba", "torch")
DEVICES = {"mamba_ssm": "cuda", "triton": "cuda", "numba": "cpu"}

# 16-64 are within 20 % of each other on CPU; 32 keeps a chunk of 8 x 512 x 256 x 16 below 70 MiB.
CHUNK = 32
# Numbers of one chunk [time, batch, state, channels] at a time: 256 MiB in float32, of which the backward holds three.
_CELLS = 2**26


def _decay_and_input(delta: Tensor, a: Tensor, b: Tensor, drive: Tensor) -> tuple[Tensor, Tensor]:
    """exp(delta A) and delta u B of one chunk, both [time, batch, state, channels]."""
    decay = (delta.unsqueeze(2) * a).exp_()
    return decay, drive.unsqueeze(2) * b.unsqueeze(3)


def _states(decay: Tensor, inputs: Tensor, initial: Tensor) -> Tensor:
    """The states of one chunk, written over `inputs`."""
    previous = initial
    for t in range(len(inputs)):
        previous = inputs[t].addcmul_(decay[t], previous)
    return inputs


class _SelectiveScan(torch.autograd.Function):
    """Time-first tensors: u, delta [T, N, D]; a [S, D]; b, c [T, N, S]. Returns y [T, N, D]."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, keep_boundaries: bool) -> Tensor:
        length, batch, channels = u.shape
        drive = delta * u
        y = torch.empty_like(u)
        state = u.new_zeros(batch, a.shape[0], channels)
        boundaries = []  # the states before each chunk but the first, which are zero
        for start in range(0, length, CHUNK):
            chunk = slice(start, min(start + CHUNK, length))
            if keep_boundaries and start:
                boundaries.append(state)
            states = _states(*_decay_and_input(delta[chunk], a, b[chunk], drive[chunk]), state)
            torch.matmul(c[chunk].unsqueeze(2), states, out=y[chunk].unsqueeze(2))
            state = states[-1].clone()
        if keep_boundaries:
            ctx.save_for_backward(u, delta, a, b, c, *boundaries)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        u, delta, a, b, c, *boundaries = ctx.saved_tensors
        length = len(u)
        boundaries = [u.new_zeros(u.shape[1], a.shape[0], u.shape[2]), *boundaries]
        drive = delta * u
        grad_y = grad_y.contiguous()
        grad_delta, grad_u = torch.empty_like(delta), torch.empty_like(u)
        grad_a, grad_b, grad_c = torch.zeros_like(a), torch.empty_like(b), torch.empty_like(c)
        carry = torch.zeros_like(boundaries[0])
        for index in range(len(boundaries) - 1, -1, -1):
            chunk = slice(index * CHUNK, min((index + 1) * CHUNK, length))
            decay, inputs = _decay_and_input(delta[chunk], a, b[chunk], drive[chunk])
            states = _states(decay, inputs, boundaries[index])
            torch.matmul(states, grad_y[chunk].unsqueeze(3), out=grad_c[chunk].unsqueeze(3))
            grad_state = grad_y[chunk].unsqueeze(2) * c[chunk].unsqueeze(3)
            grad_state[-1] += carry
            for t in range(len(grad_state) - 2, -1, -1):
                grad_state[t].addcmul_(decay[t + 1], grad_state[t + 1])
            carry = decay[0] * grad_state[0]
            # d(loss)/d(drive) and d(loss)/d(B), from  inputs = drive x B
            grad_drive = torch.matmul(b[chunk].unsqueeze(2), grad_state).squeeze(2)
            torch.matmul(grad_state, drive[chunk].unsqueeze(3), out=grad_b[chunk].unsqueeze(3))
            # d(loss)/d(delta A), from  decay = exp(delta A)
            grad_exponent = grad_state.mul_(decay)
            grad_exponent[0] *= boundaries[index]
            grad_exponent[1:] *= states[:-1]
            grad_u[chunk] = grad_drive * delta[chunk]
            grad_delta[chunk] = torch.mul(grad_exponent, a, out=decay).sum(2) + grad_drive * u[chunk]
            grad_a += grad_exponent.mul_(delta[chunk].unsqueeze(2)).sum((0, 1))
        return grad_u, grad_delta, grad_a, grad_b, grad_c, None


def _torch_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    u, delta, b, c = (x.float().transpose(0, 1) for x in (u, delta, b, c))
    a = a.float().t().contiguous()
    # a batch of very many short sequences goes in parts, as its states are held for all of them at once
    rows = max(1, _CELLS // (min(CHUNK, len(u)) * a.numel()))
    parts = zip(*(x.split(rows, dim=1) for x in (u, delta, b, c)), strict=True)
    scanned = [
        _SelectiveScan.apply(
            u_.contiguous(), delta_.contiguous(), a, b_.contiguous(), c_.contiguous(), torch.is_grad_enabled()
        )
        for u_, delta_, b_, c_ in parts
    ]
    y = scanned[0] if len(scanned) == 1 else torch.cat(scanned, dim=1)
    return (y + d.float() * u).transpose(0, 1)


@cache
def _load(backend: str) -> Callable[..., Tensor] | None:
    """A backend's entry point; None where it cannot be used. Imported late: numba takes half a second."""
    if backend == "torch":
        return _torch_scan
    try:
        scan = importlib.import_module(f"ehrctx.models.ops.selective_scan_{backend}").selective_scan
        if DEVICES[backend] == "cuda":
            # a GPU that is not supported, or a missing compiler, shows at the first launch only
            one = torch.ones(1, 1, 1, device="cuda")
            scan(one, one, -one[0], one, one, one[0, 0])
    except Exception as error:  # whatever a compiler or a driver raises: the next backend serves
        # not there is nothing to say aloud; there and failing is, as the next one may be ten times slower
        level = logging.INFO if isinstance(error, ImportError) else logging.WARNING
        logger.log(level, "selective scan: %s cannot be used (%s: %s)", backend, type(error).__name__, error)
        return None
    return scan


def backends_for(device: torch.device) -> Iterator[str]:
    """The backends that can be used for tensors on `device`, the best first; each is tried when it is asked for."""
    return (b for b in BACKENDS if DEVICES.get(b, device.type) == device.type and _load(b) is not None)


def backend_for(device: torch.device) -> str:
    """The best backend that can be used for tensors on `device`."""
    return next(backends_for(device))


def check_backend(backend: str, device: torch.device) -> str:
    """`backend` again. Raises ValueError if it is not for tensors on `device`, RuntimeError if it cannot be used."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown selective-scan backend {backend!r}; known: {', '.join(BACKENDS)}")
    if DEVICES.get(backend, device.type) != device.type:
        raise ValueError(f"the {backend} backend runs on {DEVICES[backend]} only, not on {device}")
    if _load(backend) is None:
        raise RuntimeError(f"the {backend} backend of the selective scan was asked for, but it cannot be used here")
    return backend


@cache
def _log_choice(backend: str, device_type: str) -> None:
    logger.info("selective scan on %s: %s backend", device_type, backend)


def selective_scan(
    u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, *, backend: str | None = None
) -> Tensor:
    """The scan, computed in float32 whatever autocast says.

    Args:
        u: input [batch, length, channels].
        delta: step sizes, positive (after softplus) [batch, length, channels].
        a: decay rates, negative [channels, state].
        b, c: input and output maps [batch, length, state].
        d: skip connection [channels].
        backend: one of `BACKENDS`; by default the one `backend_for` the tensors' device.

    Returns:
        y [batch, length, channels], float32.
    """
    backend = backend_for(u.device) if backend is None else check_backend(backend, u.device)
    _log_choice(backend, u.device.type)
    scan = _load(backend)
    assert scan is not None
    with torch.autocast(device_type=u.device.type, enabled=False):
        return scan(u, delta, a, b, c, d)
