"""Hyena's mixer against its equations written out in float64, and what its filter promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ehrctx.models.hyena import HyenaConfig, HyenaForCausalLM, HyenaMixer, ImplicitFilter
from ehrctx.models.model import build_model
from ehrctx.study import ModelId

torch.set_num_threads(1)

WIDTH = 6


def config(**changes) -> HyenaConfig:
    settings = {
        "vocab_size": 40, "hidden_size": WIDTH, "num_hidden_layers": 2, "intermediate_size": 9, "filter_length": 50,
        "filter_width": 8,
    }  # fmt: skip
    return HyenaConfig(**settings | changes)


@pytest.fixture
def mixer() -> HyenaMixer:
    """Random weights everywhere, biases and frequencies included."""
    torch.manual_seed(4)
    made = HyenaMixer(config())
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def weights(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: p.detach().double().numpy() for name, p in module.named_parameters()}


def filter_by_hand(w: dict[str, np.ndarray], length: int, settings: HyenaConfig) -> np.ndarray:
    """[channels, length] from the papers: features of the lag, three sine layers, a linear one, exponential damping."""
    channels = w["out.weight"].shape[0]
    bands = np.linspace(1e-4, 1.0, 2)
    slowest, fastest = math.log(100) / 1.5, math.log(100) / 0.3
    out = np.empty((channels, length))
    for step in range(length):
        lag = step / settings.filter_length
        x = np.array([lag, *np.cos(2 * np.pi * bands * lag), *(-np.sin(2 * np.pi * bands * lag))])
        for layer in range(3):
            x = np.sin(w["frequency"] * (w[f"inner.{layer}.weight"] @ x + w[f"inner.{layer}.bias"]))
        for channel in range(channels):
            rate = slowest + (fastest - slowest) * channel / (channels - 1)
            out[channel, step] = (w["out.weight"] @ x)[channel] * math.exp(-rate * lag)
    return out


def mixer_by_hand(w: dict[str, np.ndarray], settings: HyenaConfig, x: np.ndarray) -> np.ndarray:
    """[length, width] -> the same shape; one position and one channel at a time."""
    length = len(x)
    projected = x @ w["in_proj.weight"].T + w["in_proj.bias"]
    short = np.empty_like(projected)
    taps = w["short.weight"].shape[-1]
    for t in range(length):
        for c in range(3 * WIDTH):
            short[t, c] = w["short.bias"][c] + sum(
                w["short.weight"][c, 0, k] * projected[t - taps + 1 + k, c]
                for k in range(taps)
                if t - taps + 1 + k >= 0
            )
    x0, x1, v = short[:, :WIDTH], short[:, WIDTH : 2 * WIDTH], short[:, 2 * WIDTH :]
    gated = x1 * v
    kernel = filter_by_hand({k.removeprefix("filter."): p for k, p in w.items()}, length, settings)
    mixed = np.empty_like(gated)
    for t in range(length):
        for c in range(WIDTH):
            mixed[t, c] = w["filter.skip"][c] * gated[t, c] + sum(kernel[c, s] * gated[t - s, c] for s in range(t + 1))
    return (x0 * mixed) @ w["out_proj.weight"].T + w["out_proj.bias"]


@pytest.mark.parametrize("length", [1, 2, 50, 77])
def test_the_filter_is_the_one_of_the_papers(mixer, length):
    expected = filter_by_hand(weights(mixer.filter), length, mixer.filter.config)
    found = mixer.filter(length)
    assert found.shape == (WIDTH, length)
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=2e-5)
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("length", [1, 3, 20, 64])
def test_the_mixer_is_its_equations(mixer, length):
    x = torch.randn(2, length, WIDTH, generator=torch.Generator().manual_seed(length))
    found = mixer(x).detach().numpy()
    for row in range(2):
        expected = mixer_by_hand(weights(mixer), mixer.filter.config, x[row].double().numpy())
        np.testing.assert_allclose(found[row], expected, atol=1e-4)
    assert found.std() > 0.01


def test_gradients_of_the_mixer_are_finite_differences_of_its_equations(mixer):
    x = torch.randn(1, 12, WIDTH, generator=torch.Generator().manual_seed(1))
    direction = torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(2))
    (mixer(x)[0] * direction).sum().backward()
    towards = direction.double().numpy()
    rng, step, w = np.random.default_rng(3), 1e-6, weights(mixer)
    for name, parameter in mixer.named_parameters():
        along = rng.standard_normal(parameter.shape)
        values = [
            (mixer_by_hand(w | {name: w[name] + moved * along}, mixer.filter.config, x[0].double().numpy()) * towards)
            for moved in (step, -step)
        ]
        slope = float((values[0] - values[1]).sum()) / (2 * step)
        found = float((parameter.grad.double().numpy() * along).sum())
        assert found == pytest.approx(slope, rel=1e-3, abs=1e-4), name


def test_a_longer_filter_begins_with_the_shorter(mixer):
    """Lags are measured in the model's own length: a longer input meets the same filter, further on."""
    torch.testing.assert_close(mixer.filter(200)[:, :60], mixer.filter(60), atol=1e-6, rtol=0)
    assert mixer.filter(200)[:, 150:].abs().max() < mixer.filter(50).abs().max(), "damped beyond its length"


def test_the_filter_stays_in_full_precision(mixer):
    expected = mixer.filter(40)
    with torch.autocast("cpu", torch.bfloat16):
        found = mixer.filter(40)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_under_autocast_the_model_is_right_to_bfloat16():
    model = build_model(ModelId.parse("hyena-tiny-64"), 40, seed=0).eval()
    tokens = torch.randint(0, 40, (2, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.states(tokens)
        with torch.autocast("cpu", torch.bfloat16):
            found = model.states(tokens)
    assert float((found.float() - expected).abs().mean()) < 0.02 * float(expected.abs().mean()) + 0.01


@torch.no_grad()
def test_a_hundredfold_future_does_not_move_the_past(mixer):
    """The stated bound is 1e-3; measured are some 1e-5, a rounding of outputs that grow a million times."""
    x = torch.randn(2, 200, WIDTH, generator=torch.Generator().manual_seed(5))
    changed = x.clone()
    changed[:, 100:] *= 100
    before, after = mixer(x), mixer(changed)
    assert after[:, 100:].abs().max() > 1e4 * before.abs().max()
    assert (after[:, :100] - before[:, :100]).abs().max() < 1e-3


@torch.no_grad()
def test_a_hundredfold_embedding_of_later_tokens_does_not_move_earlier_states():
    """Through the whole network: tokens 20 and above occur only later, and their embeddings grow a hundred times."""
    model = build_model(ModelId.parse("hyena-tiny-64"), 40, seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    early, late = (torch.randint(low, low + 20, (2, 300), generator=generator) for low in (0, 20))
    tokens = torch.cat([early, late], dim=1)
    before = model.states(tokens)
    model.network.get_input_embeddings().weight[20:] *= 100
    after = model.states(tokens)
    assert (after[:, 300:] - before[:, 300:]).abs().max() > 0.5
    assert (after[:, :300] - before[:, :300]).abs().max() < 1e-5


@torch.no_grad()
def test_inputs_longer_than_the_filter_and_their_prefixes_agree():
    model = build_model(ModelId.parse("hyena-tiny-64"), 40, seed=0).eval()
    tokens = torch.randint(0, 40, (1, 1_000), generator=torch.Generator().manual_seed(2))
    states = model.states(tokens)
    for length in (1, 3, 64, 65, 300, 999):
        torch.testing.assert_close(model.states(tokens[:, :length]), states[:, :length], atol=1e-5, rtol=0)


def test_initial_weights_have_the_stated_sizes():
    """0.02 for what is embedded or projected, smaller by the depth where it enters the residual stream."""
    network = HyenaForCausalLM(config(hidden_size=128, intermediate_size=256, num_hidden_layers=2, filter_width=32))
    for name, parameter in network.named_parameters():
        spread = float(parameter.detach().std())
        if ".filter." in name or ".short." in name or "norm" in name:
            continue
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "out_proj" in name or ".down." in name:
            assert spread == pytest.approx(0.02 / math.sqrt(2 * 2), rel=0.1), name
        else:
            assert spread == pytest.approx(0.02, rel=0.1), name
    for module in network.modules():
        if isinstance(module, ImplicitFilter):
            bounds = [1 / math.sqrt(layer.in_features) for layer in (*module.inner, module.out)]
            for layer, bound in zip((*module.inner, module.out), bounds, strict=True):
                assert 0.7 * bound < float(layer.weight.detach().abs().max()) <= bound, "torch's own uniform weights"
            assert module.frequency.eq(10).all()


def test_in_evaluation_the_filter_is_made_once_until_a_weight_changes(mixer, monkeypatch):
    made: list[int] = []
    computed = ImplicitFilter._filter

    def counted(self: ImplicitFilter, length: int) -> torch.Tensor:
        made.append(length)
        return computed(self, length)

    monkeypatch.setattr(ImplicitFilter, "_filter", counted)
    kernel = mixer.filter.eval()
    with torch.no_grad():
        for length in (30, 12, 30):
            torch.testing.assert_close(kernel(length), computed(kernel, length), atol=0, rtol=0)
        assert made == [30], "shorter filters are the beginning of the longest"
        kernel(31)
        assert made == [30, 31]
        kernel.out.weight.mul_(2)  # in place, as an optimizer does
        torch.testing.assert_close(kernel(31), computed(kernel, 31), atol=0, rtol=0)
        kernel.load_state_dict({name: 0.5 * value for name, value in kernel.state_dict().items()})
        torch.testing.assert_close(kernel(31), computed(kernel, 31), atol=0, rtol=0)
        assert made == [30, 31, 31, 31]
        kernel.train()(31)
        kernel(31)
        assert made[4:] == [31, 31], "nothing is kept in training"
    assert kernel.eval()(31).requires_grad, "nor where gradients are wanted"
