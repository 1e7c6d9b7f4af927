"""The selective scan's kernels for CUDA tensors, in Triton; `selective_scan.py` says what is computed.

The recurrence (Gu & Dao 2023, arXiv 2312.00752, eq. 2) is linear in the state, so that time is parallel in three steps:
every chunk of CHUNK steps starts from zero and gives its last state (`_alone`); these are joined one after the other, a
chunk as a whole decaying by exp(A sum(delta)) (`_join`); every chunk starts again, now from its true first state, and
writes y (`_outputs`). The states at chunk boundaries are all that is kept. The backward joins the states' gradients by
the first two kernels, run from the end, and then walks through each chunk twice: forwards, keeping its states in
registers, and backwards (`_gradients`).

Inside a chunk the steps come one after the other, for one tile of states x channels. `tl.associative_scan` is not used:
it would do the same products in shuffles between threads, and its `reverse=True` turns the whole tile around by
shuffles first. A program for each chunk rather than one that loops over the chunks fills a GPU also when a batch is one
long sequence; the price is that the forward computes the exponentials twice.

What programs share (the gradients of a, b, c and d) goes to one buffer per program, summed afterwards: no atomics, so
that two runs give the same bits. Everything is float32 whatever the inputs' dtype.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

# One warp reads 32 channels of a step, one cache line. With 16 states, the boundaries of chunks of 16 are as large as
# one activation, and `_gradients` holds its 16 x 16 x 32 states in 64 registers of each of its 128 threads.
CHUNK = 16
BLOCK = 32
# Elements of the tile [states, BLOCK] per thread. All states in one thread: no exchange to sum over them.
_PER_THREAD = 16
# Fewer where a thread must also hold the states of all steps.
_PER_THREAD_GRADIENTS = 4
# Chunks whose states `_join` reads at once: reading, not adding, is what takes time there.
_JOINED = 16

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _read(pointer: tl.tensor, offsets: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """float32 values, zero outside: a step beyond the end then has delta = 0 and leaves every state as it is."""
    return tl.load(pointer + offsets, mask=inside, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["length", "chunks"])
def _alone(
    values: tl.tensor, delta: tl.tensor, a: tl.tensor, maps: tl.tensor, ends: tl.tensor, totals: tl.tensor, length: tl.tensor, channels: tl.tensor, states: tl.tensor,
    chunks: tl.tensor, REVERSE: tl.constexpr, CHUNK: tl.constexpr, STATES: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """The last state of one chunk that starts from zero; values and maps are u and b.

    In reverse the gradient of the state before the chunk's first step, as far as the chunk itself gives rise to it;
    values and maps are then y's gradient and c. Written to the slot of the neighbour that it goes on to, with the
    chunk's sum of delta: ends [N, K, S, D], totals [N, K, D].
    """
    n = (tl.program_id(0) // (chunks - 1)).to(tl.int64)
    slot = tl.program_id(0) % (chunks - 1)
    # The outermost chunk has no neighbour on that side.
    k = slot
    if REVERSE:
        k = slot + 1
    else:
        slot = slot + 1
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    state = tl.arange(0, STATES)
    in_channels, in_states = channel < channels, state < states
    in_tile = in_states[:, None] & in_channels[None, :]
    rate = _read(a, channel[None, :] * states + state[:, None], in_tile) * _LOG2_E
    row = n * length + k * CHUNK
    values += row * channels
    delta += row * channels
    maps += row * states
    h = tl.zeros([STATES, BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for i in tl.static_range(CHUNK):
        t = CHUNK - 1 - i if REVERSE else i
        in_time = k * CHUNK + t < length
        step = _read(delta, t * channels + channel, in_channels & in_time)
        value = _read(values, t * channels + channel, in_channels & in_time)
        map_t = _read(maps, t * states + state, in_states & in_time)
        decay = tl.exp2(step[None, :] * rate)
        if REVERSE:
            h = decay * (h + value[None, :] * map_t[:, None])
        else:
            h = decay * h + (step * value)[None, :] * map_t[:, None]
        total += step
    slot_row = n * chunks + slot
    tl.store(totals + slot_row * channels + channel, total, mask=in_channels)
    tl.store(ends + slot_row * states * channels + (state[:, None] * channels + channel[None, :]), h, mask=in_tile)


@triton.jit(do_not_specialize=["chunks"])
def _join(
    a: tl.tensor, ends: tl.tensor, totals: tl.tensor, channels: tl.tensor, states: tl.tensor, chunks: tl.tensor,
    REVERSE: tl.constexpr, JOINED: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """From what each chunk gives alone to the true states (or gradients) at the boundaries, in place."""
    n = (tl.program_id(0) // states).to(tl.int64)
    state = tl.program_id(0) % states
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    in_channels = channel < channels
    rate = _read(a, channel * states + state, in_channels) * _LOG2_E
    h = tl.zeros([BLOCK], tl.float32)
    for first in range(0, chunks - 1, JOINED):
        # All reads come before all writes, or the compiler would have to wait for each in turn.
        decays = ()
        own = ()
        for i in tl.static_range(JOINED):
            slot = chunks - 2 - (first + i) if REVERSE else first + i + 1
            inside = in_channels & (first + i < chunks - 1)
            slot_row = n * chunks + slot
            decays = decays + (tl.exp2(_read(totals + slot_row * channels, channel, inside) * rate),)  # noqa: RUF005
            own = own + (_read(ends + (slot_row * states + state) * channels, channel, inside),)  # noqa: RUF005
        for i in tl.static_range(JOINED):
            h = decays[i] * h + own[i]
            slot = chunks - 2 - (first + i) if REVERSE else first + i + 1
            slot_row = n * chunks + slot
            inside = in_channels & (first + i < chunks - 1)
            tl.store(ends + (slot_row * states + state) * channels + channel, h, mask=inside)


@triton.jit(do_not_specialize=["length", "chunks"])
def _outputs(
    u: tl.tensor, delta: tl.tensor, a: tl.tensor, b: tl.tensor, c: tl.tensor, d: tl.tensor, boundaries: tl.tensor, y: tl.tensor, length: tl.tensor, channels: tl.tensor,
    states: tl.tensor, chunks: tl.tensor, CHUNK: tl.constexpr, STATES: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """y of one chunk."""
    n = (tl.program_id(0) // chunks).to(tl.int64)
    k = tl.program_id(0) % chunks
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    state = tl.arange(0, STATES)
    in_channels, in_states = channel < channels, state < states
    in_tile = in_states[:, None] & in_channels[None, :]
    rate = _read(a, channel[None, :] * states + state[:, None], in_tile) * _LOG2_E
    skip = _read(d, channel, in_channels)
    row, slot = n * length + k * CHUNK, (n * chunks + k) * states * channels
    u += row * channels
    delta += row * channels
    b += row * states
    c += row * states
    y += row * channels
    h = _read(boundaries + slot, state[:, None] * channels + channel[None, :], in_tile & (k > 0))
    # Written at the end: a write between two reads would keep the compiler from reading ahead.
    ys = ()
    for t in tl.static_range(CHUNK):
        in_time = k * CHUNK + t < length
        step = _read(delta, t * channels + channel, in_channels & in_time)
        u_t = _read(u, t * channels + channel, in_channels & in_time)
        b_t = _read(b, t * states + state, in_states & in_time)
        c_t = _read(c, t * states + state, in_states & in_time)
        h = tl.exp2(step[None, :] * rate) * h + (step * u_t)[None, :] * b_t[:, None]
        ys = ys + (tl.sum(h * c_t[:, None], 0) + skip * u_t,)  # noqa: RUF005
    for t in tl.static_range(CHUNK):
        tl.store(y + t * channels + channel, ys[t], mask=in_channels & (k * CHUNK + t < length))


@triton.jit(do_not_specialize=["length", "chunks"])
def _gradients(
    u: tl.tensor, delta: tl.tensor, a: tl.tensor, b: tl.tensor, c: tl.tensor, d: tl.tensor, boundaries: tl.tensor, grad_y: tl.tensor, carries: tl.tensor, grad_u: tl.tensor,
    grad_delta: tl.tensor, grad_b: tl.tensor, grad_c: tl.tensor, grad_d: tl.tensor, length: tl.tensor, channels: tl.tensor, states: tl.tensor, chunks: tl.tensor,
    CHUNK: tl.constexpr, STATES: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """The gradients of one chunk; carries [N, K, S, D] holds those of the states after it, then those of a."""
    n = (tl.program_id(0) // chunks).to(tl.int64)
    k = tl.program_id(0) % chunks
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    state = tl.arange(0, STATES)
    in_channels, in_states = channel < channels, state < states
    in_tile = in_states[:, None] & in_channels[None, :]
    tile = state[:, None] * channels + channel[None, :]
    rate = _read(a, channel[None, :] * states + state[:, None], in_tile) * _LOG2_E
    skip = _read(d, channel, in_channels)
    row, slot = n * length + k * CHUNK, (n * chunks + k) * states * channels
    u += row * channels
    delta += row * channels
    grad_y += row * channels
    grad_u += row * channels
    grad_delta += row * channels
    b += row * states
    c += row * states
    # The programs along axis 1 have a buffer [N, L, S] each.
    steps = (tl.num_programs(0) // chunks).to(tl.int64) * length
    own = (tl.program_id(1) * steps + row) * states
    grad_b += own
    grad_c += own

    h = _read(boundaries + slot, tile, in_tile & (k > 0))
    before = ()
    for t in tl.static_range(CHUNK):
        in_time = k * CHUNK + t < length
        step = _read(delta, t * channels + channel, in_channels & in_time)
        u_t = _read(u, t * channels + channel, in_channels & in_time)
        b_t = _read(b, t * states + state, in_states & in_time)
        before = before + (h,)  # noqa: RUF005
        h = tl.exp2(step[None, :] * rate) * h + (step * u_t)[None, :] * b_t[:, None]

    grad_h = _read(carries + slot, tile, in_tile & (k < chunks - 1))
    grad_a = tl.zeros([STATES, BLOCK], tl.float32)
    grad_skip = tl.zeros([BLOCK], tl.float32)
    for t in tl.static_range(CHUNK - 1, -1, -1):
        in_time = k * CHUNK + t < length
        inside, in_maps = in_channels & in_time, in_states & in_time
        step = _read(delta, t * channels + channel, inside)
        u_t = _read(u, t * channels + channel, inside)
        grad_y_t = _read(grad_y, t * channels + channel, inside)
        b_t = _read(b, t * states + state, in_maps)
        c_t = _read(c, t * states + state, in_maps)
        decay = tl.exp2(step[None, :] * rate)
        drive = step * u_t
        h = decay * before[t] + drive[None, :] * b_t[:, None]
        grad_h += grad_y_t[None, :] * c_t[:, None]
        tl.store(grad_c + t * states + state, tl.sum(grad_y_t[None, :] * h, 1), mask=in_maps)
        tl.store(grad_b + t * states + state, tl.sum(grad_h * drive[None, :], 1), mask=in_maps)
        grad_drive = tl.sum(grad_h * b_t[:, None], 0)
        grad_h *= decay
        # d(loss)/d(delta A), from  decay = exp(delta A)
        grad_exponent = grad_h * before[t]
        grad_step = tl.sum(grad_exponent * rate, 0) * _LN_2 + grad_drive * u_t
        grad_a += grad_exponent * step[None, :]
        grad_skip += grad_y_t * u_t
        tl.store(grad_delta + t * channels + channel, grad_step, mask=inside)
        tl.store(grad_u + t * channels + channel, grad_drive * step + skip * grad_y_t, mask=inside)
    tl.store(carries + slot + tile, grad_a, mask=in_tile)
    tl.store(grad_d + (n * chunks + k) * channels + channel, grad_skip, mask=in_channels)


def _warps(states: int, per_thread: int) -> int:
    """Warps for a tile [states, BLOCK]; never more than 16, of which two programs still share a multiprocessor."""
    return min(16, max(1, states * BLOCK // (32 * per_thread)))


def _at_boundaries(values: Tensor, delta: Tensor, a: Tensor, maps: Tensor, reverse: bool) -> Tensor:
    """The states before each chunk, or the gradients of those after it [N, K, S, D]; the outermost slot is unset."""
    (batch, length, channels), states = values.shape, a.shape[1]
    chunks, blocks = triton.cdiv(length, CHUNK), triton.cdiv(channels, BLOCK)
    padded = triton.next_power_of_2(states)
    ends = a.new_empty(batch, chunks, states, channels, dtype=torch.float32)
    if chunks > 1:
        totals = a.new_empty(batch, chunks, channels, dtype=torch.float32)
        _alone[(batch * (chunks - 1), blocks)](
            values, delta, a, maps, ends, totals, length, channels, states, chunks,
            REVERSE=reverse, CHUNK=CHUNK, STATES=padded, BLOCK=BLOCK, num_warps=_warps(padded, _PER_THREAD),
        )  # fmt: skip
        _join[(batch * states, blocks)](
            a, ends, totals, channels, states, chunks, REVERSE=reverse, JOINED=_JOINED, BLOCK=BLOCK, num_warps=1
        )
    return ends


def _run_forward(inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """y [N, L, D] and the states before each chunk [N, K, S, D]."""
    u, delta, a, b, c, d = inputs
    (batch, length, channels), states = u.shape, a.shape[1]
    chunks, padded = triton.cdiv(length, CHUNK), triton.next_power_of_2(states)
    y = torch.empty_like(u, dtype=torch.float32)
    # Triton launches on the current device, which need not be the tensors'; nothing happens for CPU tensors.
    with torch.cuda.device_of(u):
        boundaries = _at_boundaries(u, delta, a, b, reverse=False)
        _outputs[(batch * chunks, triton.cdiv(channels, BLOCK))](
            u, delta, a, b, c, d, boundaries, y, length, channels, states, chunks,
            CHUNK=CHUNK, STATES=padded, BLOCK=BLOCK, num_warps=_warps(padded, _PER_THREAD),
        )  # fmt: skip
    return y, boundaries


class _SelectiveScan(torch.autograd.Function):
    """Contiguous tensors: u, delta [N, L, D]; a [D, S]; b, c [N, L, S]; d [D]. Returns y [N, L, D]."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        y, boundaries = _run_forward(inputs)
        ctx.save_for_backward(*inputs, boundaries)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        u, delta, a, b, c, d, boundaries = ctx.saved_tensors
        (batch, length, channels), states = u.shape, a.shape[1]
        chunks, blocks = triton.cdiv(length, CHUNK), triton.cdiv(channels, BLOCK)
        padded = triton.next_power_of_2(states)
        grad_y = grad_y.contiguous()
        grad_u, grad_delta = torch.empty_like(u), torch.empty_like(delta)
        grad_b, grad_c = (grad_y.new_empty(blocks, *b.shape) for _ in range(2))
        grad_d = grad_y.new_empty(batch, chunks, channels)
        with torch.cuda.device_of(u):
            carries = _at_boundaries(grad_y, delta, a, c, reverse=True)
            _gradients[(batch * chunks, blocks)](
                u, delta, a, b, c, d, boundaries, grad_y, carries, grad_u, grad_delta, grad_b, grad_c, grad_d,
                length, channels, states, chunks, CHUNK=CHUNK, STATES=padded, BLOCK=BLOCK,
                num_warps=_warps(padded, _PER_THREAD_GRADIENTS),
            )  # fmt: skip
        grad_a = carries.sum((0, 1)).t()
        shared = (grad_a.to(a.dtype), grad_b.sum(0).to(b.dtype), grad_c.sum(0).to(c.dtype))
        return grad_u, grad_delta, *shared, grad_d.sum((0, 1)).to(d.dtype)


def selective_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """As `ehrctx.models.ops.selective_scan.selective_scan`, for CUDA tensors."""
    inputs = tuple(x.contiguous() for x in (u, delta, a, b, c, d))
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        return _SelectiveScan.apply(*inputs)
    return _run_forward(inputs)[0]
