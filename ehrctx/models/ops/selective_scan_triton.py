"""The selective scan's kernels for CUDA tensors, in Triton; `selective_scan.py` says what is computed.

The recurrence (Gu & Dao 2023, arXiv 2312.00752, eq. 2) is linear in the state, so that chunks of time go in parallel:
each starts from zero and gives its last state (`_alone`); these are joined one after the other, a chunk as a whole
decaying by exp(A sum(delta)) (`_join`); each starts again, now from its true first state, and writes y (`_outputs`).
Only the states at chunk boundaries are kept. The backward joins the states' gradients in the same way from the end and
then walks through each chunk twice, forwards with its states held in registers, and back (`_gradients`).

Inside a chunk the steps of a tile of states x channels come one after the other. `tl.associative_scan` would do that in
shuffles between threads, and its `reverse=True` first turns the tile around by more of them. One program per chunk
rather than one that loops over chunks fills a GPU even with a single long sequence; the price is a second exponential.

What programs share (the gradients of a, b, c and d) goes to one buffer per program, summed afterwards: no atomics, so
that two runs give the same bits. All is computed in float32 whatever the inputs' dtype.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

if tuple(int(x) for x in triton.__version__.split(".")[:2]) < (3, 3):
    raise ImportError(f"the selective scan's kernels need Triton 3.3 or newer, this is {triton.__version__}")

# Chosen by what the compiler makes of them for sm_80 and sm_90 (registers, spills, instructions per step), not timed.
# Chunks of 16: with 16 states the kept boundaries are as large as one activation, and the code still fits the
# instruction cache, as all steps are unrolled.
CHUNK = 16
# 16 states x 32 channels are 16 numbers per thread of one warp, and no sum needs a barrier. `_gradients` holds such a
# tile for every step of the chunk, hence half the channels.
BLOCK = 32
BLOCK_GRADIENTS = 16
# Chunks that `_join` reads at once: it waits for memory, not for arithmetic.
JOINED = 16

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)

# In the kernels: N sequences of L steps in K chunks, D channels, S states. Annotations other than Triton's own do not
# compile. The numbers of channels and states are constants, one compilation per model: addresses of all the unrolled
# steps would otherwise fill the registers.


@triton.jit
def _read(pointer: tl.tensor, offsets: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """float32 values, zero outside: a step beyond the end then has delta = 0 and leaves every state as it is."""
    return tl.load(pointer + offsets, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _tile(a: tl.tensor, channels: tl.constexpr, states: tl.constexpr, STATES: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Channels [BLOCK], states [STATES], which of them exist, and A log2(e) [STATES, BLOCK], as exp2 is the cheaper."""
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    state = tl.arange(0, STATES)
    in_channels, in_states = channel < channels, state < states
    in_tile = in_states[:, None] & in_channels[None, :]
    rate = _read(a, channel[None, :] * states + state[:, None], in_tile) * _LOG2_E
    return channel, state, in_channels, in_states, in_tile, rate


@triton.jit(do_not_specialize=["length", "chunks"])
def _alone(
    values: tl.tensor, delta: tl.tensor, a: tl.tensor, maps: tl.tensor, ends: tl.tensor, totals: tl.tensor,
    length: tl.tensor, chunks: tl.tensor, channels: tl.constexpr, states: tl.constexpr,
    REVERSE: tl.constexpr, CHUNK: tl.constexpr, STATES: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """The state after one chunk that starts from zero; values [N, L, D] and maps [N, L, S] are u and b.

    In reverse, what the chunk adds to the gradient of the state before it; values and maps are y's gradient and c.
    Written to the neighbour's slot, to which it goes on, beside the sum of delta: ends [N, K, S, D], totals [N, K, D].
    """
    n = (tl.program_id(0) // (chunks - 1)).to(tl.int64)
    k = tl.program_id(0) % (chunks - 1)
    slot = k + 1
    if REVERSE:
        k, slot = slot, k
    channel, state, in_channels, in_states, in_tile, rate = _tile(a, channels, states, STATES, BLOCK)
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
    a: tl.tensor, ends: tl.tensor, totals: tl.tensor, chunks: tl.tensor, channels: tl.constexpr, states: tl.constexpr,
    REVERSE: tl.constexpr, JOINED: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """What each chunk gives alone becomes, in place, the true states (or gradients) at the boundaries."""
    n = (tl.program_id(0) // states).to(tl.int64)
    state = tl.program_id(0) % states
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    in_channels = channel < channels
    rate = _read(a, channel * states + state, in_channels) * _LOG2_E
    h = tl.zeros([BLOCK], tl.float32)
    for first in range(0, chunks - 1, JOINED):
        # All reads come before all writes, past which the compiler could not move them.
        decays: list = []
        own: list = []
        for i in tl.static_range(JOINED):
            inside = in_channels & (first + i < chunks - 1)
            slot_row = n * chunks + (chunks - 2 - first - i if REVERSE else first + i + 1)
            decays += [tl.exp2(_read(totals + slot_row * channels, channel, inside) * rate)]
            own += [_read(ends + (slot_row * states + state) * channels, channel, inside)]
        for i in tl.static_range(JOINED):
            h = decays[i] * h + own[i]
            inside = in_channels & (first + i < chunks - 1)
            slot_row = n * chunks + (chunks - 2 - first - i if REVERSE else first + i + 1)
            tl.store(ends + (slot_row * states + state) * channels + channel, h, mask=inside)


@triton.jit(do_not_specialize=["length", "chunks"])
def _outputs(
    u: tl.tensor, delta: tl.tensor, a: tl.tensor, b: tl.tensor, c: tl.tensor, d: tl.tensor, boundaries: tl.tensor,
    y: tl.tensor, length: tl.tensor, chunks: tl.tensor, channels: tl.constexpr, states: tl.constexpr,
    CHUNK: tl.constexpr, STATES: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """y of one chunk."""
    n = (tl.program_id(0) // chunks).to(tl.int64)
    k = tl.program_id(0) % chunks
    channel, state, in_channels, in_states, in_tile, rate = _tile(a, channels, states, STATES, BLOCK)
    skip = _read(d, channel, in_channels)
    row, slot = n * length + k * CHUNK, (n * chunks + k) * states * channels
    u += row * channels
    delta += row * channels
    b += row * states
    c += row * states
    h = _read(boundaries + slot, state[:, None] * channels + channel[None, :], in_tile & (k > 0))
    # Written at the end, for the reads' sake as in `_join`.
    ys: list = []
    for t in tl.static_range(CHUNK):
        in_time = k * CHUNK + t < length
        step = _read(delta, t * channels + channel, in_channels & in_time)
        u_t = _read(u, t * channels + channel, in_channels & in_time)
        b_t = _read(b, t * states + state, in_states & in_time)
        c_t = _read(c, t * states + state, in_states & in_time)
        h = tl.exp2(step[None, :] * rate) * h + (step * u_t)[None, :] * b_t[:, None]
        ys += [tl.sum(h * c_t[:, None], 0) + skip * u_t]
    for t in tl.static_range(CHUNK):
        tl.store(y + (row + t) * channels + channel, ys[t], mask=in_channels & (k * CHUNK + t < length))


@triton.jit(do_not_specialize=["length", "chunks"])
def _gradients(
    u: tl.tensor, delta: tl.tensor, a: tl.tensor, b: tl.tensor, c: tl.tensor, d: tl.tensor, boundaries: tl.tensor,
    grad_y: tl.tensor, carries: tl.tensor, grad_u: tl.tensor, grad_delta: tl.tensor, grad_b: tl.tensor,
    grad_c: tl.tensor, grad_d: tl.tensor, length: tl.tensor, chunks: tl.tensor, channels: tl.constexpr,
    states: tl.constexpr, CHUNK: tl.constexpr, STATES: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """The gradients of one chunk. carries [N, K, S, D] holds that of the state after it, and is left holding a's."""
    n = (tl.program_id(0) // chunks).to(tl.int64)
    k = tl.program_id(0) % chunks
    channel, state, in_channels, in_states, in_tile, rate = _tile(a, channels, states, STATES, BLOCK)
    tile = state[:, None] * channels + channel[None, :]
    skip = _read(d, channel, in_channels)
    row, slot = n * length + k * CHUNK, (n * chunks + k) * states * channels
    u += row * channels
    delta += row * channels
    grad_y += row * channels
    b += row * states
    c += row * states
    grad_u += row * channels
    grad_delta += row * channels
    # A buffer [N, L, S] for each block of channels.
    rows = (tl.num_programs(0) // chunks).to(tl.int64) * length
    grad_b += (tl.program_id(1) * rows + row) * states
    grad_c += (tl.program_id(1) * rows + row) * states

    h = _read(boundaries + slot, tile, in_tile & (k > 0))
    before: list = []
    for t in tl.static_range(CHUNK):
        in_time = k * CHUNK + t < length
        step = _read(delta, t * channels + channel, in_channels & in_time)
        u_t = _read(u, t * channels + channel, in_channels & in_time)
        b_t = _read(b, t * states + state, in_states & in_time)
        before += [h]
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
        grad_a += grad_exponent * step[None, :]
        grad_step = tl.sum(grad_exponent * rate, 0) * _LN_2 + grad_drive * u_t
        grad_skip += grad_y_t * u_t
        tl.store(grad_delta + t * channels + channel, grad_step, mask=inside)
        tl.store(grad_u + t * channels + channel, grad_drive * step + skip * grad_y_t, mask=inside)
    tl.store(carries + slot + tile, grad_a, mask=in_tile)
    tl.store(grad_d + (n * chunks + k) * channels + channel, grad_skip, mask=in_channels)


def _constants(a: Tensor, block: int) -> dict[str, int]:
    """What the kernels over [states, channels] are compiled for; one warp for every 16 states, Triton's limit is 32."""
    channels, states = a.shape
    padded = triton.next_power_of_2(states)
    sizes = {"channels": channels, "states": states, "CHUNK": CHUNK, "STATES": padded, "BLOCK": block}
    return sizes | {"num_warps": min(32, max(1, padded // 16))}


def _at_boundaries(values: Tensor, delta: Tensor, a: Tensor, maps: Tensor, reverse: bool) -> Tensor:
    """The states before each chunk, or the gradients of those after it [N, K, S, D]; the outermost slot is unset."""
    (batch, length, channels), states = values.shape, a.shape[1]
    chunks, blocks = triton.cdiv(length, CHUNK), triton.cdiv(channels, BLOCK)
    ends = a.new_empty(batch, chunks, states, channels, dtype=torch.float32)
    if chunks > 1:
        totals = a.new_empty(batch, chunks, channels, dtype=torch.float32)
        _alone[(batch * (chunks - 1), blocks)](
            values, delta, a, maps, ends, totals, length, chunks, REVERSE=reverse, **_constants(a, BLOCK)
        )
        _join[(batch * states, blocks)](
            a, ends, totals, chunks, channels, states, REVERSE=reverse, JOINED=JOINED, BLOCK=BLOCK, num_warps=1
        )
    return ends


def _run_forward(inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """y [N, L, D] and the states before each chunk [N, K, S, D]."""
    u, delta, a, b, c, d = inputs
    batch, length, channels = u.shape
    chunks = triton.cdiv(length, CHUNK)
    y = torch.empty_like(u, dtype=torch.float32)
    # Triton launches on the current device, which need not be the tensors'. Does nothing for CPU tensors.
    with torch.cuda.device_of(u):
        boundaries = _at_boundaries(u, delta, a, b, reverse=False)
        _outputs[(batch * chunks, triton.cdiv(channels, BLOCK))](
            u, delta, a, b, c, d, boundaries, y, length, chunks, **_constants(a, BLOCK)
        )
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
        batch, length, channels = u.shape
        chunks, blocks = triton.cdiv(length, CHUNK), triton.cdiv(channels, BLOCK_GRADIENTS)
        grad_y = grad_y.contiguous()
        grad_u, grad_delta = torch.empty_like(u), torch.empty_like(delta)
        grad_b, grad_c = (grad_y.new_empty(blocks, *b.shape) for _ in range(2))
        grad_d = grad_y.new_empty(batch, chunks, channels)
        with torch.cuda.device_of(u):
            carries = _at_boundaries(grad_y, delta, a, c, reverse=True)
            _gradients[(batch * chunks, blocks)](
                u, delta, a, b, c, d, boundaries, grad_y, carries, grad_u, grad_delta, grad_b, grad_c, grad_d,
                length, chunks, **_constants(a, BLOCK_GRADIENTS),
            )  # fmt: skip
        shared = [carries.sum((0, 1)).t(), grad_b.sum(0), grad_c.sum(0), grad_d.sum((0, 1))]
        return grad_u, grad_delta, *(x.to(like.dtype) for x, like in zip(shared, (a, b, c, d), strict=True))


def selective_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """As `ehrctx.models.ops.selective_scan.selective_scan`, for CUDA tensors."""
    inputs = tuple(x.contiguous() for x in (u, delta, a, b, c, d))
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        return _SelectiveScan.apply(*inputs)
    return _run_forward(inputs)[0]
