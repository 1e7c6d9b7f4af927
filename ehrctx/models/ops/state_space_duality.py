"""Mamba-2's scan by state-space duality (SSD): masked attention inside chunks, a recurrence from chunk to chunk.

    h_t = exp(delta_t a) h_{t-1} + delta_t b_t x_tᵀ,    y_t = c_t h_t + d x_t        (Dao & Gu 2024, section 6)

As a head has one decay for all of its channels and states, the steps of a chunk are one product with the matrix
(c_i b_j) exp(s_i - s_j), i >= j, where s is the cumulative sum of delta a: matrix products do most of the work, and
time and memory grow linearly with the length.

The exponents are differences of sums that may reach tens of thousands, of which float32 knows the third decimal only.
So s is summed in float64 and split: `high`, its float32 part, whose differences are exact enough, and the small rest
`low`, as factors exp(-low_j) of the input and exp(low_i) of the output. No exponent of a difference is ever positive:
nothing overflows, whatever delta.

The backward keeps the inputs and the state before each chunk, and computes the matrices again, a block of chunks at a
time, small enough for the cache.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 64  # steps, at most
# Numbers of one block's matrices: 1 MiB in float32 on CPU, 256 MiB elsewhere, where launches cost more than memory.
_CELLS, _CELLS_OFF_CPU = 2**18, 2**26


class _Block(NamedTuple):
    """A block of chunks; N batch, K chunks, G groups, R heads of a group, Q steps of a chunk."""

    drive: Tensor  # delta exp(-low) x [N, K, G, Q, R, P]
    rate: Tensor  # delta exp(-low) [N, K, G, Q, R, 1], as are the next three
    scale: Tensor  # exp(low)
    leaving: Tensor  # exp(high): how much of the state before the chunk is left at a step
    entering: Tensor  # exp(last - high): how much of a step's drive is left at the end of the chunk
    whole: Tensor  # exp(last): how much is left over a chunk [N, K, G, 1, R, 1]
    decay: Tensor  # exp(high_i - high_j) where i >= j, else 1 [N, K, G, R, Q, Q]
    scores: Tensor  # c_i b_j where i >= j, else 0 [N, K, G, 1, Q, Q]


def _block(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> _Block:
    total = (delta.double() * a.double().unsqueeze(-1)).cumsum(-1)
    high = total.float()
    low, last = (total - high).float(), total[..., -1:]
    rate, scale, leaving, entering, whole = (
        t.float().transpose(3, 4).unsqueeze(-1)
        for t in (delta * torch.exp(-low), low.exp(), high.exp(), (last - high).exp(), last.exp())
    )
    decay = (high.unsqueeze(-1) - high.unsqueeze(-2)).clamp_(max=0).exp_()
    scores = (c @ b.transpose(-1, -2)).tril_().unsqueeze(3)
    return _Block(x * rate, rate, scale, leaving, entering, whole, decay, scores)


def _by_head(t: Tensor) -> Tensor:
    """[N, K, G, Q, R, P] <-> [N, K, G, R, Q, P]."""
    return t.transpose(3, 4)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """`left` [..., m, n] @ `right` [..., n, R, P], for all heads of a group at once."""
    return (left @ right.flatten(-2)).unflatten(-1, right.shape[-2:])


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """`left` [..., m, R, P], `right` [..., n, R, P] -> [..., m, n], summed over heads and channels."""
    return left.flatten(-2) @ right.flatten(-2).transpose(-1, -2)


class _ChunkedScan(torch.autograd.Function):
    """x [N, K, G, Q, R, P]; delta [N, K, G, R, Q]; a, d [G, R]; b, c [N, K, G, Q, S]. Returns y, like x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, keep: bool) -> Tensor:
        batch, chunks, groups, steps, heads, width = x.shape
        cells = _CELLS if x.device.type == "cpu" else _CELLS_OFF_CPU
        size = max(1, cells // (batch * groups * heads * steps**2))
        blocks = [slice(start, start + size) for start in range(0, chunks, size)]
        y = torch.empty_like(x)
        state = x.new_zeros(batch, groups, b.shape[-1], heads, width)
        kept = []  # the state before each chunk, by block
        for block in blocks:
            parts = _block(x[:, block], delta[:, block], a, b[:, block], c[:, block])
            states = _product(b[:, block].transpose(-1, -2), parts.drive * parts.entering)
            for k in range(states.shape[1]):
                after = torch.addcmul(states[:, k], parts.whole[:, k], state)
                states[:, k] = state
                state = after
            if keep:
                kept.append(states)
            y_block = _product(c[:, block], states).mul_(parts.leaving)
            y_block += _by_head(parts.decay.mul_(parts.scores) @ _by_head(parts.drive))
            torch.addcmul(x[:, block] * d.unsqueeze(-1).unsqueeze(1), y_block, parts.scale, out=y[:, block])
        if keep:
            ctx.blocks = blocks
            ctx.save_for_backward(x, delta, a, b, c, d, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, delta, a, b, c, d, *kept = ctx.saved_tensors
        grad_x, grad_delta, grad_b, grad_c = (torch.empty_like(t) for t in (x, delta, b, c))
        grad_a, grad_d = torch.zeros_like(a), torch.zeros_like(d)
        carry = torch.zeros_like(kept[0][:, 0])
        for block, states in zip(reversed(ctx.blocks), reversed(kept), strict=True):
            b_, c_, x_ = b[:, block], c[:, block], x[:, block]
            parts = _block(x_, delta[:, block], a, b_, c_)
            grad = grad_y[:, block] * parts.scale
            grad_leaving = grad * parts.leaving
            grad_states = _product(c_.transpose(-1, -2), grad_leaving)
            for k in range(states.shape[1] - 1, -1, -1):
                before = torch.addcmul(grad_states[:, k], parts.whole[:, k], carry)
                grad_states[:, k] = carry  # of the state after the chunk
                carry = before

            # within the chunks
            grad_by_head, drive_by_head = _by_head(grad).contiguous(), _by_head(parts.drive).contiguous()
            grad_matrix = (grad_by_head @ drive_by_head.transpose(-1, -2)).mul_(parts.decay)
            grad_scores = grad_matrix.sum(3).tril_()
            # the diagonal does not decay; in float64, as what cancels here meets large delta where little is left
            grad_exponent = grad_matrix.mul_(parts.scores).double()
            grad_exponent.diagonal(dim1=-2, dim2=-1).zero_()
            rising = grad_exponent.sum(-1) - grad_exponent.sum(-2)
            grad_inner = _by_head(parts.decay.mul_(parts.scores).transpose(-1, -2) @ grad_by_head)

            # between them
            grad_entering = _product(b_, grad_states).mul_(parts.entering)
            rising += (_product(c_, states).mul_(grad_leaving)).sum(-1).transpose(3, 4)
            falling = (grad_entering * parts.drive).sum(-1).transpose(3, 4)
            through = parts.whole.flatten(3) * (states * grad_states).sum((3, 5))

            grad_b[:, block] = grad_scores.transpose(-1, -2) @ c_ + _outer(parts.drive * parts.entering, grad_states)
            grad_c[:, block] = grad_scores @ b_ + _outer(grad_leaving, states)
            grad_drive = grad_entering.add_(grad_inner)
            # a step's exponent delta a is in the sums of all steps from it on
            grad_step = rising.flip(-1).cumsum(-1).flip(-1) + (falling.cumsum(-1) - falling) + through.unsqueeze(-1)
            grad_a += (grad_step * delta[:, block]).sum((0, 1, 4))
            of_rate = (grad_drive * x_).sum(-1).transpose(3, 4) / parts.scale.squeeze(-1).transpose(3, 4)
            grad_delta[:, block] = grad_step * a.unsqueeze(-1) + of_rate
            skip = d.unsqueeze(-1).unsqueeze(1)
            torch.addcmul(grad_y[:, block] * skip, grad_drive, parts.rate, out=grad_x[:, block])
            grad_d += (grad_y[:, block] * x_).sum((0, 1, 3, 5))
        return grad_x, grad_delta, grad_a, grad_b, grad_c, grad_d, None


def ssd_scan(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """The scan, computed in float32 whatever autocast says.

    Args:
        x: input [batch, length, heads, head_dim].
        delta: step sizes, positive (after softplus) [batch, length, heads].
        a: decay rates, negative [heads].
        b, c: input and output maps [batch, length, groups, state]; heads / groups consecutive heads share one.
        d: skip connection [heads].

    Returns:
        y [batch, length, heads, head_dim], float32.
    """
    length, heads, groups = x.shape[1], x.shape[2], b.shape[2]
    chunks = -(-length // CHUNK)
    steps = -(-length // chunks)  # as equal as can be: little is padded, at the end, where nothing is changed by it

    def chunked(t: Tensor) -> Tensor:
        """[batch, length, ...] -> [batch, chunks, steps, groups, ...]."""
        padded = F.pad(t.float(), (0, 0) * (t.ndim - 2) + (0, chunks * steps - length))
        return padded.unflatten(1, (chunks, steps)).unflatten(3, (groups, -1))

    with torch.autocast(x.device.type, enabled=False):
        y = _ChunkedScan.apply(
            chunked(x).transpose(2, 3),
            chunked(delta).permute(0, 1, 3, 4, 2),
            a.float().view(groups, -1),
            chunked(b).squeeze(4).transpose(2, 3),
            chunked(c).squeeze(4).transpose(2, 3),
            d.float().view(groups, -1),
            torch.is_grad_enabled(),
        )
        return y.transpose(2, 3).reshape(x.shape[0], chunks * steps, heads, -1)[:, :length]
