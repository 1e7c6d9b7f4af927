"""The selective scan's CPU kernels, compiled by numba; `selective_scan.py` says what is computed and dispatches here.

Plain torch needs a dozen passes over [time, batch, state, channels] arrays that do not fit any cache. Here a block of
channels of one sequence is one task: for each chunk of time its tiles (a few KiB each) stay in the first-level cache
while the states are swept one after the other, channels innermost, so that every inner loop is vectorised. As in the
torch version, only the states at chunk boundaries are kept and the backward recomputes the others.

What tasks share (the gradients of a, b, c and d) goes to one buffer per task, summed afterwards in a fixed order: no
result depends on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor
from torch.autograd.function import once_differentiable

# Measured on 2 cores with AVX-512: within 10 % for chunks of 16-32 and blocks of 64-128. At 16 x 64 the backward's
# eight tiles fit in 32 KiB, and with 16 states the kept boundaries are as large as one activation.
CHUNK = 16
BLOCK = 64

# NaN must propagate, hence no "nnan"; "reassoc" lets the sums over channels use vector registers.
_FAST = {"contract", "nsz", "reassoc"}

# exp(x) = 2^k exp(r), r = x - k ln 2. Adding _ROUND rounds k = x / ln 2 to an integer that, thanks to the 127, sits in
# the low bits of the sum already biased like a float32's exponent. ln 2 is split so that k * _LN2_HIGH is exact.
_LOG2_E = np.float32(1.4426950408889634)
_ROUND = np.float32(1.5 * 2**23 + 127)
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
_SMALLEST, _LARGEST = np.float32(-87.33), np.float32(89.0)
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
# Minimax fit of (exp(r) - 1 - r) / r^2 on |r| <= ln(2) / 2, relative error of the whole 3e-9.
_C2, _C3, _C4, _C5, _C6 = (
    np.float32(x) for x in (4.999999345e-01, 1.666652061e-01, 4.166838840e-02, 8.368718624e-03, 1.381458210e-03)
)


@intrinsic
def _power_of_two(typing_context: Any, rounded: Any) -> Any:
    """2^k from k + _ROUND: its low bits moved to a float32's exponent, in a register."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], ir.IntType(32))
        return builder.bitcast(builder.shl(bits, ir.IntType(32)(23)), ir.FloatType())

    return types.float32(types.float32), generate


# Without "reassoc": it would cancel the rounding by _ROUND.
@numba.njit(fastmath={"contract", "nsz"}, cache=True)
def exp_float32(x: Any) -> Any:
    """exp in float32 to 2e-7; 0 below -87.33, NaN for NaN. Branch-free, so loops over it vectorise (no SVML needed)."""
    bounded = _SMALLEST if x < _SMALLEST else (_LARGEST if x > _LARGEST else x)
    rounded = bounded * _LOG2_E + _ROUND
    k = rounded - _ROUND
    r = (bounded - k * _LN2_HIGH) - k * _LN2_LOW
    tail = _C2 + r * (_C3 + r * (_C4 + r * (_C5 + r * _C6)))
    value = (_ONE + (r + r * r * tail)) * _power_of_two(rounded)
    return _ZERO if x < _SMALLEST else value


# "noalias" (the tiles never overlap) in place of LLVM's run-time overlap checks, of which it does only a few.
@numba.njit(fastmath=_FAST, cache=True, noalias=True)
def _forward_state(delta: Any, drive: Any, rate: Any, b: Any, c: Any, state: Any, y: Any) -> None:
    """One state over one chunk: advances `state` and adds C h to `y`. Tiles [CHUNK, BLOCK], rows [BLOCK]."""
    for t in range(len(b)):
        for j in range(BLOCK):
            h = exp_float32(delta[t, j] * rate[j]) * state[j] + drive[t, j] * b[t]
            state[j] = h
            y[t, j] += c[t] * h


@numba.njit(fastmath=_FAST, cache=True, noalias=True)
def _recompute_state(delta: Any, drive: Any, rate: Any, b: Any, state: Any, decays: Any, before: Any) -> None:
    """exp(delta A) and the state before each step of one chunk; `state` ends as the one after the last."""
    for t in range(len(b)):
        for j in range(BLOCK):
            decay = exp_float32(delta[t, j] * rate[j])
            decays[t, j] = decay
            before[t, j] = state[j]
            state[j] = decay * state[j] + drive[t, j] * b[t]


@numba.njit(fastmath=_FAST, cache=True, noalias=True)
def _backward_state(
    delta: Any, drive: Any, rate: Any, b: Any, c: Any, grad_y: Any, decays: Any, before: Any,
    carry: Any, grad_delta: Any, grad_drive: Any, grad_rate: Any, grad_b: Any, grad_c: Any,
) -> None:  # fmt: skip
    """One state over one chunk, backwards; `carry` is d(loss)/d(state) as it comes from later steps."""
    for t in range(len(b) - 1, -1, -1):
        b_t, c_t, sum_b, sum_c = b[t], c[t], _ZERO, _ZERO
        for j in range(BLOCK):
            decayed = decays[t, j] * before[t, j]
            sum_c += grad_y[t, j] * (decayed + drive[t, j] * b_t)
            grad_h = carry[j] + grad_y[t, j] * c_t
            sum_b += grad_h * drive[t, j]
            grad_drive[t, j] += grad_h * b_t
            grad_exponent = grad_h * decayed
            grad_delta[t, j] += grad_exponent * rate[j]
            grad_rate[j] += grad_exponent * delta[t, j]
            carry[j] = grad_h * decays[t, j]
        grad_b[t] = sum_b
        grad_c[t] = sum_c


@numba.njit(fastmath=_FAST, cache=True)
def _forward_block(
    u: Any, delta: Any, a: Any, b: Any, c: Any, d: Any, y: Any, boundaries: Any, first: int, width: int
) -> None:
    """Channels first .. first + width of one sequence; tiles are padded with zeros to BLOCK channels."""
    length, states = b.shape[1], a.shape[0]
    rate, state = np.zeros((states, BLOCK), np.float32), np.zeros((states, BLOCK), np.float32)
    delta_tile, drive, y_tile = (np.zeros((CHUNK, BLOCK), np.float32) for _ in range(3))
    rate[:, :width] = a[:, first : first + width]
