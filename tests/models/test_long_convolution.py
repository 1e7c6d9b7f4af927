"""The long convolution against the double sum that defines it: values, all gradients, precisions, blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrctx.models.ops import long_convolution as module
from ehrctx.models.ops.long_convolution import long_convolution

torch.set_num_threads(1)


def draw(batch: int, channels: int, length: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Input, kernel, skip, and a direction for the gradients."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, channels, length), (channels, length), (channels,), (batch, channels, length))
    return tuple(torch.randn(*shape, generator=generator) for shape in shapes)


def directly(u: torch.Tensor, kernel: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
    """y_t = skip u_t + sum over s <= t of kernel_s u_{t-s}, as a product with the matrix of all pairs of positions."""
    lag = torch.arange(u.shape[-1]).unsqueeze(1) - torch.arange(u.shape[-1])
    matrix = torch.where(lag >= 0, kernel[:, lag.clamp(min=0)], 0.0)
    return torch.einsum("cts,bcs->bct", matrix, u) + skip.unsqueeze(1) * u


def reference(u: torch.Tensor, kernel: torch.Tensor, skip: torch.Tensor, direction: torch.Tensor) -> list[torch.Tensor]:
    """Value and gradients with respect to input, kernel and skip, by autograd through the double sum in float64."""
    inputs = [x.double().requires_grad_() for x in (u, kernel, skip)]
    y = directly(*inputs)
    return [y.detach(), *torch.autograd.grad((y * direction.double()).sum(), inputs)]


def ours(u: torch.Tensor, kernel: torch.Tensor, skip: torch.Tensor, direction: torch.Tensor) -> list[torch.Tensor]:
    inputs = [x.clone().requires_grad_() for x in (u, kernel, skip)]
    y = long_convolution(*inputs)
    return [y.detach(), *torch.autograd.grad((y * direction).sum(), inputs)]


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor], atol: float = 1e-4) -> None:
    for name, mine, wanted in zip(("y", "u", "kernel", "skip"), found, expected, strict=True):
        torch.testing.assert_close(mine.double(), wanted.double(), atol=atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def test_a_sum_worked_out_by_hand():
    u, kernel, skip = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[10.0, 1.0, 0.5]]), torch.tensor([100.0])
    expected = [110.0, 200 + 20 + 1, 300 + 30 + 2 + 0.5]
    assert long_convolution(u, kernel, skip)[0, 0].tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("length", [1, 2, 3, 17, 64, 257, 1000])
@pytest.mark.parametrize(("batch", "channels"), [(1, 1), (3, 4)])
def test_values_and_gradients_are_those_of_the_double_sum(length, batch, channels):
    inputs = draw(batch, channels, length, seed=length)
    assert_close(ours(*inputs), reference(*inputs))


@settings(max_examples=40)
@given(
    batch=st.integers(1, 4),
    channels=st.integers(1, 6),
    length=st.integers(1, 90),
    cells=st.sampled_from([1, 150, 700, 2**20]),
    seed=st.integers(0, 1000),
)
def test_neither_shape_nor_blocks_matter(batch, channels, length, cells, seed):
    inputs = draw(batch, channels, length, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CELLS", cells)
        found = ours(*inputs)
    assert_close(found, reference(*inputs))


@pytest.mark.parametrize("cells", [1, 500, 1_300])
def test_blocks_of_channels_give_what_one_block_gives(monkeypatch, cells):
    inputs = draw(2, 7, 100)
    whole = ours(*inputs)
    monkeypatch.setattr(module, "_CELLS", cells)
    blocks = list(module._blocks(2, 7, 200))
    assert len(blocks) > 1
    assert [c for block in blocks for c in range(7)[block]] == list(range(7)), "each channel once"
    assert_close(ours(*inputs), whole, atol=1e-5)


def test_gradients_of_parts_of_the_inputs():
    u, kernel, skip, direction = draw(2, 3, 20)
    _, *expected = reference(u, kernel, skip, direction)
    for which, wanted in enumerate(expected):
        inputs = [u.clone(), kernel.clone(), skip.clone()]
        inputs[which].requires_grad_()
        (long_convolution(*inputs) * direction).sum().backward()
        torch.testing.assert_close(inputs[which].grad.double(), wanted, atol=1e-5, rtol=0)


def test_inputs_that_are_views_of_other_layouts():
    """As the mixer passes them: channels last in memory, and gradients expanded from one number."""
    u, kernel, skip, _ = draw(2, 5, 33)
    last = u.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    transposed = kernel.t().contiguous().t().requires_grad_()
    y = long_convolution(last, transposed, skip)
    y.sum().backward()
    expected = reference(u, kernel, skip, torch.ones_like(u))
    for mine, wanted in zip((y.detach(), last.grad, transposed.grad), expected, strict=False):
        torch.testing.assert_close(mine.double(), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
def test_precision_around_it_stays_outside(dtype, autocast):
    """The result has the input's type and is exact up to rounding into it, under autocast, too."""
    u, kernel, skip, direction = draw(2, 3, 300)
    u, kernel = u.to(dtype).requires_grad_(), kernel.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = long_convolution(u, kernel, skip)
    assert y.dtype == dtype
    expected, _, of_kernel, _ = reference(u.detach(), kernel.detach(), skip, direction.to(dtype))
    exact = max(torch.finfo(dtype).eps, 1e-6)
    torch.testing.assert_close(y.double(), expected, atol=1e-4, rtol=exact)
    (y * direction.to(dtype)).sum().backward()
    assert (u.grad.dtype, kernel.grad.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(kernel.grad.double(), of_kernel, atol=2e-4, rtol=0)


def test_a_low_precision_kernel_is_the_only_loss():
    u, kernel, skip, direction = draw(1, 3, 50)
    y = long_convolution(u, kernel.bfloat16(), skip.bfloat16())
    assert y.dtype == torch.float32
    expected, *_ = reference(u, kernel.bfloat16(), skip.bfloat16(), direction)
    torch.testing.assert_close(y.double(), expected, atol=1e-4, rtol=0)


def test_what_comes_later_changes_nothing_but_rounding():
    """A future a hundred times as large moves the past by its rounding, of order 1e-7 times the largest output."""
    u, kernel, skip, _ = draw(2, 3, 400)
    before = long_convolution(u, kernel, skip)
    u[:, :, 200:] *= 100
    after = long_convolution(u, kernel, skip)
    assert (after[:, :, 200:] - before[:, :, 200:]).abs().max() > 100
    assert (after[:, :, :200] - before[:, :, :200]).abs().max() < 2e-6 * after.abs().max()


def test_the_end_does_not_wrap_around_to_the_beginning():
    """Linear, not circular: an impulse at the end of the input leaves every earlier position at zero."""
    for length in (2, 16, 31, 100):
        u, kernel = torch.zeros(1, 1, length), torch.ones(1, length)
        u[0, 0, -1] = 1.0
        y = long_convolution(u, kernel, torch.zeros(1))[0, 0]
        torch.testing.assert_close(y[:-1], torch.zeros(length - 1), atol=1e-6, rtol=0)
        assert float(y[-1]) == pytest.approx(1.0, abs=1e-6)


def test_only_the_inputs_are_kept_for_the_backward():
    """No spectrum: the promise that saves most of the memory."""
    u, kernel, skip, _ = (x.requires_grad_() for x in draw(2, 4, 64))
    kept: list[torch.Tensor] = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        long_convolution(u, kernel, skip)
    assert not any(x.is_complex() for x in kept)
    assert max(x.numel() for x in kept) == u.numel()
