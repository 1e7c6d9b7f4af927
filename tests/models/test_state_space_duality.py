"""The chunked scan of Mamba-2 against its recurrence, step by step in float64, whose gradients autograd computes."""

from __future__ import annotations

import time
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

import ehrctx.models.ops.state_space_duality as module
from ehrctx.models.ops.state_space_duality import CHUNK, ssd_scan

torch.set_num_threads(1)

NAMES = ("x", "delta", "a", "b", "c", "d")


def reference(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    share = x.shape[2] // b.shape[2]
    state = x.new_zeros(x.shape[0], x.shape[2], b.shape[3], x.shape[3])
    y = []
    for t in range(x.shape[1]):
        b_t, c_t = (maps[:, t].repeat_interleave(share, dim=1).unsqueeze(3) for maps in (b, c))
        decay = torch.exp(delta[:, t] * a)[..., None, None]
        state = decay * state + delta[:, t, :, None, None] * b_t * x[:, t].unsqueeze(2)
        y.append((c_t * state).sum(2) + d.unsqueeze(1) * x[:, t])
    return torch.stack(y, 1)


def inputs(length: int, heads: int = 4, groups: int = 1, scale: float = 0.1, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1000 * length + 10 * heads + groups)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    x, b, c = normal(batch, length, heads, 3), normal(batch, length, groups, 5), normal(batch, length, groups, 5)
    return [x, scale * uniform(batch, length, heads), -1 - 15 * uniform(heads), b, c, normal(heads)]


def output_and_gradients(case: list[Tensor], in_float64: bool = False) -> list[Tensor]:
    """y and the six gradients of a random projection of y."""
    leaves = [(t.double() if in_float64 else t).clone().requires_grad_() for t in case]
    y = (reference if in_float64 else ssd_scan)(*leaves)
    (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    return [y.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def assert_close(case: list[Tensor]) -> None:
    actual, expected = output_and_gradients(case), output_and_gradients(case, in_float64=True)
    assert len(actual) == len(expected) == 1 + len(NAMES)
    for name, ours, theirs in zip(("y", *NAMES), actual, expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.isfinite(ours).all(), name
        # a single step has no decay: its gradient of a is zero, and must be
        error = float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))
        assert error <= 1e-5, f"{name}: {error:.1e}"


@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (4, 1), (4, 2), (3, 3)])
@pytest.mark.parametrize("length", [1, 2, 7, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK - 5])
def test_output_and_gradients_equal_the_float64_recurrence(length: int, heads: int, groups: int) -> None:
    assert_close(inputs(length, heads, groups))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 5.0, 50.0, 1e3])
def test_extreme_step_sizes(scale: float) -> None:
    """Sums of delta a in the tens of thousands, of which float32 alone would know two decimals."""
    for seed in (170, 171, 172):
        assert_close(inputs(seed, scale=scale))


def test_a_few_small_steps_between_very_large_ones() -> None:
    """The small ones, late in a chunk, carry a state over exponents that are small beside the sum."""
    case = inputs(2 * CHUNK)
    case[1] = torch.full_like(case[1], 1e3)
    case[1][:, CHUNK - 9 : CHUNK + 9] = 0.01
    assert_close(case)


@pytest.mark.parametrize("cells", [1, 2 * 4 * CHUNK**2, 3 * 2 * 4 * CHUNK**2])
def test_blocks_of_any_number_of_chunks(monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    """One, one and three chunks at a time, of four."""
    monkeypatch.setattr(module, "_CELLS", cells)
    assert_close(inputs(4 * CHUNK))


def test_strided_and_half_precision_inputs_are_scanned_in_float32() -> None:
    x, delta, a, b, c, d = inputs(70)
    expected = ssd_scan(x, delta.bfloat16().float(), a, b, c, d)
    strided = x.transpose(1, 3).contiguous().transpose(1, 3)
    both = torch.cat([b, c], dim=3).split(5, dim=3)
    with torch.autocast("cpu", torch.bfloat16):
        y = ssd_scan(strided, delta.bfloat16(), a, *both, d)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_without_gradients_the_output_is_the_same_and_no_states_are_kept() -> None:
    case = [t.requires_grad_() for t in inputs(150)]
    with torch.no_grad(), patch.object(module._ChunkedScan, "backward", side_effect=AssertionError):
        y = ssd_scan(*case)
    assert y.grad_fn is None
    assert torch.equal(y, ssd_scan(*case))


def test_nan_is_not_hidden() -> None:
    for index, name in enumerate(NAMES):
        case = inputs(20)
        case[index].view(-1)[0] = float("nan")
        y = ssd_scan(*case)
        assert torch.isnan(y[0]).any(), name
        assert torch.isfinite(y[1]).any(), name


def test_what_is_kept_for_the_backward_grows_linearly_with_the_length() -> None:
    """As time does, which a busy machine shows less surely: transformers joins chunks by a product of all pairs."""

    def kept(length: int) -> int:
        stored: dict[int, int] = {}

        def keep(t: Tensor) -> Tensor:
            stored[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            ssd_scan(*[t.requires_grad_() for t in inputs(length, batch=1)])
        return sum(stored.values())

    assert kept(32 * CHUNK) < 2.1 * kept(16 * CHUNK)


def test_time_grows_linearly_with_the_length() -> None:
    """Eight times the length in at most sixteen times the CPU time; a quadratic step would take sixty-four."""

    def seconds(length: int) -> float:
        case = inputs(length, batch=1)
        output_and_gradients(case)
        taken = []
        for _ in range(3):
            started = time.process_time()
            output_and_gradients(case)
            taken.append(time.process_time() - started)
        return min(taken)

    assert seconds(128 * CHUNK) < 16 * seconds(16 * CHUNK)
