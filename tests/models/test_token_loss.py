"""The chunked token loss, summed and by token, against torch's cross-entropy in float64 and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrctx.models.ops import token_loss as module
from ehrctx.models.ops.token_loss import token_loss, token_losses

torch.set_num_threads(1)

HIDDEN, VOCABULARY = 6, 11


def draw(n: int, seed: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    states = scale * torch.randn(n, HIDDEN, generator=generator)
    weight = scale * torch.randn(VOCABULARY, HIDDEN, generator=generator)
    return states, weight, torch.randint(0, VOCABULARY, (n,), generator=generator)


def reference(
    states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, scale: float = 1.0
) -> tuple[torch.Tensor, ...]:
    """Value, and `scale` times both gradients, by torch in float64."""
    s, w = states.double().requires_grad_(), weight.double().requires_grad_()
    value = F.cross_entropy(s @ w.t(), targets, reduction="sum")
    return value.detach(), *torch.autograd.grad(scale * value, (s, w))


def ours(
    states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, scale: float = 1.0
) -> tuple[torch.Tensor, ...]:
    s, w = states.clone().requires_grad_(), weight.clone().requires_grad_()
    value = token_loss(s, w, targets)
    return value.detach(), *torch.autograd.grad(scale * value, (s, w))


# below, at and beyond one and two chunks of seven
@pytest.mark.parametrize("n", [1, 6, 7, 8, 13, 14, 15, 29])
@pytest.mark.parametrize("scale", [1.0, 0.125])
def test_value_and_gradients_are_those_of_cross_entropy(monkeypatch, n, scale):
    monkeypatch.setattr(module, "CHUNK", 7)
    inputs = draw(n, seed=n)
    value, grad_states, grad_weight = ours(*inputs, scale=scale)
    expected, wanted_states, wanted_weight = reference(*inputs, scale=scale)
    assert value.dtype == torch.float32
    assert value.shape == ()
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    torch.testing.assert_close(grad_states.double(), wanted_states, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(grad_weight.double(), wanted_weight, atol=2e-6, rtol=1e-5)


@settings(max_examples=40)
@given(
    n=st.integers(1, 40), chunk=st.integers(1, 45), seed=st.integers(0, 1000), scale=st.sampled_from([0.1, 1.0, 5.0])
)
def test_the_chunk_length_changes_nothing(n, chunk, seed, scale):
    inputs = draw(n, seed, scale)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        found = ours(*inputs)
    for mine, wanted in zip(found, reference(*inputs), strict=True):
        bound = 1e-5 * float(wanted.abs().max()) + 1e-5
        torch.testing.assert_close(mine.double(), wanted, atol=bound, rtol=0)


def test_gradients_equal_finite_differences_of_the_definition():
    states, weight, targets = draw(9, seed=4)
    s, w = states.double().numpy(), weight.double().numpy()

    def definition(s: np.ndarray, w: np.ndarray) -> float:
        """Minus the sum of log softmax at the targets."""
        logits = s @ w.T
        return float(sum(np.log(np.exp(row).sum()) - row[t] for row, t in zip(logits, targets.tolist(), strict=True)))

    value, grad_states, grad_weight = ours(states, weight, targets)
    assert float(value) == pytest.approx(definition(s, w), rel=1e-6)
    rng, step = np.random.default_rng(0), 1e-5
    for _ in range(5):
        ds, dw = rng.standard_normal(s.shape), rng.standard_normal(w.shape)
        slope = (definition(s + step * ds, w + step * dw) - definition(s - step * ds, w - step * dw)) / (2 * step)
        predicted = (grad_states.double().numpy() * ds).sum() + (grad_weight.double().numpy() * dw).sum()
        assert predicted == pytest.approx(slope, rel=1e-4)


def test_large_logits_do_not_overflow():
    states, weight, targets = draw(5, seed=1, scale=30.0)
    found, wanted = ours(states, weight, targets), reference(states, weight, targets)
    assert all(torch.isfinite(x).all() for x in found)
    assert float(found[0]) == pytest.approx(float(wanted[0]), rel=1e-5)


def test_no_rows_cost_nothing():
    value, grad_states, grad_weight = ours(*draw(0, seed=0))
    assert float(value) == 0
    assert grad_states.shape == (0, HIDDEN)
    assert torch.equal(grad_weight, torch.zeros(VOCABULARY, HIDDEN))


def test_without_gradients_the_value_is_the_same(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 7)
    states, weight, targets = draw(20, seed=2)
    with torch.no_grad():
        value = token_loss(states.clone().requires_grad_(), weight.clone().requires_grad_(), targets)
    assert not value.requires_grad
    assert float(value) == pytest.approx(float(reference(states, weight, targets)[0]), rel=1e-6)


def test_one_gradient_without_the_other():
    states, weight, targets = draw(12, seed=6)
    _, wanted_states, wanted_weight = reference(states, weight, targets)
    for which, wanted in ((0, wanted_states), (1, wanted_weight)):
        inputs = [states.clone(), weight.clone()]
        inputs[which].requires_grad_()
        token_loss(*inputs, targets).backward()
        torch.testing.assert_close(inputs[which].grad.double(), wanted, atol=2e-6, rtol=1e-5)
        assert inputs[1 - which].grad is None


def test_under_autocast_the_loss_is_right_to_bfloat16():
    states, weight, targets = draw(50, seed=7)
    expected, wanted_states, wanted_weight = reference(states, weight, targets)
    for dtype in (torch.float32, torch.bfloat16):
        s, w = states.to(dtype, copy=True).requires_grad_(), weight.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            value = token_loss(s, w, targets)
        value.backward()
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(float(expected), rel=2e-2)
        assert (s.grad.dtype, w.grad.dtype) == (dtype, torch.float32)
        torch.testing.assert_close(s.grad.double(), wanted_states, atol=5e-2, rtol=5e-2)
        torch.testing.assert_close(w.grad.double(), wanted_weight, atol=1e-1, rtol=5e-2)


def one_by_one(states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(states.double() @ weight.double().t(), targets, reduction="none")


@settings(max_examples=40)
@given(
    n=st.integers(0, 40), chunk=st.integers(1, 45), seed=st.integers(0, 1000), scale=st.sampled_from([0.1, 1.0, 30.0])
)
def test_token_losses_are_cross_entropies_whatever_the_chunk(n, chunk, seed, scale):
    inputs = draw(n, seed, scale)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        found = token_losses(*inputs)
    assert (found.dtype, found.shape) == (torch.float32, (n,))
    torch.testing.assert_close(found.double(), one_by_one(*inputs), atol=1e-5 * scale**2 + 1e-6, rtol=1e-5)


def test_token_losses_of_a_vocabulary_of_real_size():
    """Beyond the chunk of positions that is used in earnest; each summed into `token_loss`."""
    generator = torch.Generator().manual_seed(0)
    states, weight = (torch.randn(rows, 8, generator=generator) for rows in (module.CHUNK + 5, 4_096))
    targets = torch.randint(0, 4_096, (len(states),), generator=generator)
    found = token_losses(states, weight, targets)
    torch.testing.assert_close(found.double(), one_by_one(states, weight, targets), atol=1e-5, rtol=1e-5)
    assert float(found.sum()) == pytest.approx(float(token_loss(states, weight, targets)), rel=1e-5)


def test_token_losses_carry_no_gradient():
    states, weight, targets = draw(9, seed=3)
    assert not token_losses(states.requires_grad_(), weight.requires_grad_(), targets).requires_grad


def test_token_losses_of_bfloat16_states_are_right_to_bfloat16():
    """As CUDA's autocast hands them over: float32 weights, states of another precision."""
    states, weight, targets = draw(50, seed=7)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = token_losses(states.bfloat16(), weight, targets)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), one_by_one(states, weight, targets), atol=0.1, rtol=2e-2)
