"""The selective scan's CPU kernels, compiled by numba; `selective_scan.py` says what is computed and dispatches here.

Plain torch makes a dozen passes over [time, batch, state, channels] arrays that do not fit any cache. Here a block of
channels of one sequence is one task: for each chunk of time its tiles (a few KiB each) stay in the first-level cache
while the states are swept one after the other, channels innermost, so that every inner loop is vectorised. As in the
torch version, only the states at chunk boundaries are kept and the backward recomputes the others.

What tasks share (the gradients of a, b, c and d) goes to one buffer per task, summed afterwards in a fixed order: no
result depends on the number of threads.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor
from torch.autograd.function import once_differentiable

from ehrctx.kernels import kernel

# Forward and backward of 8 x 512 x 256 channels x 16 states, one core with AVX-512: 16 x 128 27 ms, 16 x 64 32 ms,
# 16 x 32 42 ms, chunks of 8 and 32 no better. With 16 states the kept boundaries are as large as one activation.
CHUNK = 16
BLOCK = 128

# A task's tiles lie in one flat buffer at constant offsets: LLVM then sees that they do not overlap. Were they separate
# arrays, it would need more run-time overlap checks than it is willing to make, and would not vectorise. The spare row
# of each tile holds the state before the chunk, or the carry from after it.
_TILE = (CHUNK + 1) * BLOCK
_DELTA, _DRIVE, _Y, _STATE, _CARRY, _GRAD_DELTA, _GRAD_DRIVE = (i * _TILE for i in range(7))
# Two rows for the sums over channels.
_SUM_B = 7 * _TILE
_SUM_C = _SUM_B + BLOCK
_TILES = _SUM_C + BLOCK

# NaN must propagate, hence no "nnan". Nothing that lets the compiler round as it likes ("reassoc", "contract") either:
# a function compiled alone, which a fresh process runs, and its copy in a caller, which numba's cache holds, would
# round differently, and a resumed training would not end with the same bits. A fused multiply-add, where it is wanted,
# is written out.
_FAST = {"nsz"}
_HALF, _QUARTER, _EIGHTH = BLOCK // 2, BLOCK // 4, BLOCK // 8

# exp(x) = 2^k exp(r), r = x - k ln 2. Adding _ROUND rounds k = x / ln 2 to an integer that, thanks to the 127, sits in
# the low bits of the sum already biased like a float32's exponent. ln 2 is split so that k * _LN2_HIGH is exact.
_LOG2_E = np.float32(1.4426950408889634)
_ROUND = np.float32(1.5 * 2**23 + 127)
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
_SMALLEST, _LARGEST = np.float32(-87.33), np.float32(89.0)
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
# Minimax fit of (exp(r) - 1 - r) / r^2 on |r| <= ln(2) / 2; the polynomial's relative error is 3e-9.
_C2, _C3, _C4 = np.float32(4.999999345e-01), np.float32(1.666652061e-01), np.float32(4.166838840e-02)
_C5, _C6 = np.float32(8.368718624e-03), np.float32(1.381458210e-03)


@intrinsic
def _power_of_two(typing_context: Any, rounded: Any) -> Any:
    """2^k from k + _ROUND: its low bits moved to a float32's exponent, in a register."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], ir.IntType(32))
        return builder.bitcast(builder.shl(bits, ir.IntType(32)(23)), ir.FloatType())

    return types.float32(types.float32), generate


@intrinsic
def _fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a b + c, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


# "reassoc" would also cancel the rounding by _ROUND.
@kernel(fastmath=_FAST)
def exp_float32(x: Any) -> Any:
    """exp in float32 to 2e-7; 0 below -87.33, NaN for NaN. Branch-free, so that loops over it vectorise (no SVML)."""
    bounded = _SMALLEST if x < _SMALLEST else (_LARGEST if x > _LARGEST else x)
    rounded = _fma(bounded, _LOG2_E, _ROUND)
    k = rounded - _ROUND
    r = _fma(k, -_LN2_LOW, _fma(k, -_LN2_HIGH, bounded))
    tail = _fma(r, _fma(r, _fma(r, _fma(r, _C6, _C5), _C4), _C3), _C2)
    value = (_ONE + _fma(r * r, tail, r)) * _power_of_two(rounded)
    return _ZERO if x < _SMALLEST else value


@kernel()
def _copy_columns(source: Any, source_first: int, target: Any, target_first: int, width: int) -> None:
    # A loop, since assigning slices compiles broadcasting and its error messages: several seconds.
    for s in range(len(source)):
        for j in range(width):
            target[s, target_first + j] = source[s, source_first + j]


@kernel(fastmath=_FAST)
def _load(tiles: Any, delta: Any, u: Any, start: int, steps: int, first: int, width: int) -> None:
    for t in range(steps):
        for j in range(width):
            step = delta[start + t, first + j]
            tiles[_DELTA + t * BLOCK + j] = step
            tiles[_DRIVE + t * BLOCK + j] = step * u[start + t, first + j]


@kernel(fastmath=_FAST)
def _forward_state(tiles: Any, rate: Any, state: Any, b: Any, c: Any, steps: int) -> None:
    """One of the states over one chunk: advances it and adds C h to y. rate and state [BLOCK]; b and c [steps]."""
    for t in range(steps):
        row, b_t, c_t = t * BLOCK, b[t], c[t]
        for j in range(BLOCK):
            i = row + j
            h = _fma(exp_float32(tiles[_DELTA + i] * rate[j]), state[j], tiles[_DRIVE + i] * b_t)
            state[j] = h
            tiles[_Y + i] = _fma(c_t, h, tiles[_Y + i])


@kernel(fastmath=_FAST)
def _recompute_state(tiles: Any, rate: Any, initial: Any, b: Any, steps: int) -> None:
    """One of the states through one chunk; row t of the carry tile is left holding the decay of step t."""
    for j in range(len(initial)):
        tiles[_STATE + j] = initial[j]
    for t in range(steps):
        row, b_t = t * BLOCK, b[t]
        for j in range(BLOCK):
            i = row + j
            decay = exp_float32(tiles[_DELTA + i] * rate[j])
            tiles[_CARRY + i] = decay
            tiles[_STATE + i + BLOCK] = _fma(decay, tiles[_STATE + i], tiles[_DRIVE + i] * b_t)


@kernel(fastmath=_FAST)
def _row_sum(tiles: Any, row: int) -> Any:
    """The sum of one row of a tile, by halves: a fixed order that still uses vector registers. Overwrites the row."""
    for j in range(_HALF):
        tiles[row + j] += tiles[row + _HALF + j]
    for j in range(_QUARTER):
        tiles[row + j] += tiles[row + _QUARTER + j]
    for j in range(_EIGHTH):
        tiles[row + j] += tiles[row + _EIGHTH + j]
    even, odd = _ZERO, _ZERO
    for j in range(0, _EIGHTH, 2):
        even += tiles[row + j]
        odd += tiles[row + j + 1]
    return even + odd


@kernel(fastmath=_FAST)
def _backward_state(
    tiles: Any, rate: Any, carry: Any, b: Any, c: Any, grad_rate: Any, grad_b: Any, grad_c: Any, steps: int
) -> None:
    """One of the states backwards over one chunk; carry [BLOCK] is d(loss)/d(state) as it comes from later steps."""
    for j in range(BLOCK):
        tiles[_CARRY + steps * BLOCK + j] = carry[j]
    for t in range(steps - 1, -1, -1):
        # max: LLVM cannot tell that a descending t is never negative, and would not vectorise (3-6 times slower).
        row, b_t, c_t = max(t, 0) * BLOCK, b[t], c[t]
        for j in range(BLOCK):
            i = row + j
            grad_y, drive = tiles[_Y + i], tiles[_DRIVE + i]
            grad_h = _fma(grad_y, c_t, tiles[_CARRY + i + BLOCK])
            grad_previous = grad_h * tiles[_CARRY + i]
            grad_exponent = grad_previous * tiles[_STATE + i]
            tiles[_SUM_B + j] = grad_h * drive
            tiles[_SUM_C + j] = grad_y * tiles[_STATE + i + BLOCK]
            tiles[_CARRY + i] = grad_previous
            tiles[_GRAD_DRIVE + i] = _fma(grad_h, b_t, tiles[_GRAD_DRIVE + i])
            tiles[_GRAD_DELTA + i] = _fma(grad_exponent, rate[j], tiles[_GRAD_DELTA + i])
            grad_rate[j] = _fma(grad_exponent, tiles[_DELTA + i], grad_rate[j])
        grad_b[t] = _row_sum(tiles, _SUM_B)
        grad_c[t] = _row_sum(tiles, _SUM_C)
    for j in range(BLOCK):
        carry[j] = tiles[_CARRY + j]


@kernel(fastmath=_FAST)
def _forward_task(
    u: Any, delta: Any, a: Any, b: Any, c: Any, d: Any, y: Any, boundaries: Any, first: int, width: int
) -> None:
    """Channels first .. first + width of one sequence; beyond them the tiles hold zeros, which stay zeros."""
    length, states = b.shape[1], len(a)
    tiles = np.zeros(_TILES, np.float32)
    rates, h = np.zeros((states, BLOCK), np.float32), np.zeros((states, BLOCK), np.float32)
    _copy_columns(a, first, rates, 0, width)
    for start in range(0, length, CHUNK):
        steps = min(CHUNK, length - start)
        _load(tiles, delta, u, start, steps, first, width)
        for t in range(steps):
            for j in range(width):
                tiles[_Y + t * BLOCK + j] = d[first + j] * u[start + t, first + j]
        if len(boundaries):
            _copy_columns(h, 0, boundaries[start // CHUNK], first, width)
        for s in range(states):
            _forward_state(tiles, rates[s], h[s], b[s, start:], c[s, start:], steps)
        for t in range(steps):
            for j in range(width):
                y[start + t, first + j] = tiles[_Y + t * BLOCK + j]


@kernel(fastmath=_FAST)
def _backward_task(
    u: Any, delta: Any, a: Any, b: Any, c: Any, d: Any, boundaries: Any, grad_y: Any,
    grad_u: Any, grad_delta: Any, grad_a: Any, grad_b: Any, grad_c: Any, grad_d: Any, first: int, width: int,
) -> None:  # fmt: skip
    """The same channels backwards; grad_b and grad_c [state, length] are this task's own."""
    length, states = b.shape[1], len(a)
    tiles, rates = np.zeros(_TILES, np.float32), np.zeros((states, BLOCK), np.float32)
    carry, grad_rates = np.zeros((states, BLOCK), np.float32), np.zeros((states, BLOCK), np.float32)
    _copy_columns(a, first, rates, 0, width)
    for chunk in range(len(boundaries) - 1, -1, -1):
        start = chunk * CHUNK
        end = min(start + CHUNK, length)
        _load(tiles, delta, u, start, end - start, first, width)
        for i in range(_GRAD_DELTA, _TILES):
            tiles[i] = _ZERO
        for t in range(end - start):
            for j in range(width):
                tiles[_Y + t * BLOCK + j] = grad_y[start + t, first + j]
        for s in range(states):
            _recompute_state(tiles, rates[s], boundaries[chunk, s, first : first + width], b[s, start:], end - start)
            _backward_state(
                tiles, rates[s], carry[s], b[s, start:], c[s, start:],
                grad_rates[s], grad_b[s, start:], grad_c[s, start:], end - start,
            )  # fmt: skip
        for t in range(end - start):
            for j in range(width):
                row, channel, i = start + t, first + j, t * BLOCK + j
                grad_u[row, channel] = tiles[_GRAD_DRIVE + i] * delta[row, channel] + d[channel] * grad_y[row, channel]
                grad_delta[row, channel] = tiles[_GRAD_DELTA + i] + tiles[_GRAD_DRIVE + i] * u[row, channel]
                grad_d[channel] += grad_y[row, channel] * u[row, channel]
    _copy_columns(grad_rates, 0, grad_a, first, width)


@kernel(nogil=True, fastmath=_FAST)
def _forward(
    u: Any, delta: Any, a: Any, b: Any, c: Any, d: Any, y: Any, boundaries: Any, first_task: int, last_task: int
) -> None:
    channels = u.shape[2]
    blocks = (channels + BLOCK - 1) // BLOCK
    for task in range(first_task, last_task):
        n, first = task // blocks, task % blocks * BLOCK
        width = min(BLOCK, channels - first)
        _forward_task(u[n], delta[n], a, b[n], c[n], d, y[n], boundaries[n], first, width)


@kernel(nogil=True, fastmath=_FAST)
def _backward(
    u: Any, delta: Any, a: Any, b: Any, c: Any, d: Any, boundaries: Any, grad_y: Any,
    grad_u: Any, grad_delta: Any, grad_a: Any, grad_b: Any, grad_c: Any, grad_d: Any, first_task: int, last_task: int,
) -> None:  # fmt: skip
    channels = u.shape[2]
    blocks = (channels + BLOCK - 1) // BLOCK
    for task in range(first_task, last_task):
        n, block = task // blocks, task % blocks
        first = block * BLOCK
        width = min(BLOCK, channels - first)
        _backward_task(
            u[n], delta[n], a, b[n], c[n], d, boundaries[n], grad_y[n],
            grad_u[n], grad_delta[n], grad_a[n], grad_b[n, block], grad_c[n, block], grad_d[n], first, width,
        )  # fmt: skip


@cache
def _workers(n: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n, thread_name_prefix="selective-scan")


def _in_threads(kernel: Any, tasks: int, *arrays: np.ndarray) -> None:
    """Runs a kernel's tasks in as many threads as torch uses.

    Not numba's `prange`: starting its threads resets the number of torch's, and they spin beside other jobs.
    """
    threads = min(torch.get_num_threads(), tasks)
    bounds = [tasks * i // threads for i in range(threads + 1)]
    if threads == 1:
        kernel(*arrays, 0, tasks)
        return
    for done in [_workers(threads).submit(partial(kernel, *arrays, first, last)) for first, last in pairwise(bounds)]:
        done.result()


def _run_forward(arrays: list[np.ndarray], keep_boundaries: bool) -> tuple[Tensor, Tensor]:
    """y [batch, length, channels] and the states before each chunk [batch, chunks or 0, state, channels]."""
    (batch, length, channels), states = arrays[0].shape, len(arrays[2])
    y = torch.empty(batch, length, channels)
    boundaries = torch.empty(batch, -(-length // CHUNK) if keep_boundaries else 0, states, channels)
    _in_threads(_forward, batch * -(-channels // BLOCK), *arrays, y.numpy(), boundaries.numpy())
    return y, boundaries


def _sum(parts: np.ndarray, axis: int) -> Tensor:
    """The tasks' parts summed in a fixed order, in memory that torch allocated.

    What goes on to a matrix product must be aligned as torch aligns it: numpy's buffers are not, and MKL then rounds
    differently from run to run, so that a resumed training would not end with the same bits.
    """
    total = torch.empty([n for i, n in enumerate(parts.shape) if i != axis])
    np.sum(parts, axis=axis, out=total.numpy())
    return total


class _SelectiveScan(torch.autograd.Function):
    """Contiguous float32 tensors: u, delta [N, T, D]; a [S, D]; b, c [N, S, T]; d [D]. Returns y [N, T, D]."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        y, boundaries = _run_forward([x.detach().numpy() for x in inputs], keep_boundaries=True)
        ctx.save_for_backward(*inputs, boundaries)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        u, delta, a, b, c, d, boundaries = (x.detach().numpy() for x in ctx.saved_tensors)
        batch, length, channels = u.shape
        states, blocks = len(a), -(-channels // BLOCK)
        grad_u, grad_delta = torch.empty(u.shape), torch.empty(delta.shape)
        grad_a = np.empty((batch, states, channels), np.float32)
        grad_b, grad_c = (np.empty((batch, blocks, states, length), np.float32) for _ in range(2))
        grad_d = np.zeros((batch, channels), np.float32)
        _in_threads(
            _backward, batch * blocks,
            u, delta, a, b, c, d, boundaries, grad_y.contiguous().numpy(),
            grad_u.numpy(), grad_delta.numpy(), grad_a, grad_b, grad_c, grad_d,
        )  # fmt: skip
        shared = (_sum(grad_a, 0), _sum(grad_b, 1), _sum(grad_c, 1), _sum(grad_d, 0))
        return grad_u, grad_delta, *shared


def selective_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """As `ehrctx.models.ops.selective_scan.selective_scan`, for CPU tensors."""
    # d is a parameter itself: numpy's view of it would keep FSDP from freeing its memory
    inputs = [u, delta, a.t(), b.transpose(1, 2), c.transpose(1, 2), d.clone()]
    inputs = [x.float().contiguous() for x in inputs]
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        return _SelectiveScan.apply(*inputs)
    return _run_forward([x.detach().numpy() for x in inputs], keep_boundaries=False)[0]
