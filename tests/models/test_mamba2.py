"""Mamba-2 beyond what all architectures share: groups, limits, and how its weights are drawn."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import Mamba2Config, Mamba2ForCausalLM

from ehrctx.models.mamba2 import DualMixer, use_our_operators
from ehrctx.models.model import build_model
from ehrctx.study import SIZES, ModelId

torch.set_num_threads(1)


def mixers_of(name: str) -> list[DualMixer]:
    found = [m for m in build_model(ModelId.parse(name), 40, seed=0).modules() if isinstance(m, DualMixer)]
    assert found
    return found


@torch.no_grad()
@pytest.mark.parametrize("limit", [(0.0, math.inf), (0.02, 0.3)])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 63, 130])
def test_other_configurations_of_transformers_give_the_same_logits(groups, limit, length):
    """Several groups of heads, step sizes within limits, biases of the projections; chunks unlike ours."""
    torch.manual_seed(0)
    config = Mamba2Config(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, head_dim=16, num_heads=4, state_size=8, n_groups=groups,
        time_step_limit=limit, use_bias=True, chunk_size=16, use_cache=False,
    )  # fmt: skip
    original, ours = Mamba2ForCausalLM(config).eval(), Mamba2ForCausalLM(config).eval()
    ours.load_state_dict(original.state_dict())
    use_our_operators(ours)
    tokens = torch.randint(0, 40, (3, length), generator=torch.Generator().manual_seed(1))
    expected = original(input_ids=tokens).logits
    assert expected.std() > 0.2
    torch.testing.assert_close(ours(input_ids=tokens).logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_decay_rates_and_step_sizes_are_drawn_as_the_authors_draw_them(size):
    """A uniform in [1, 16]; softplus(dt_bias) log-uniform in [.001, .1]; D = 1. By their moments, over all heads."""
    mixers = mixers_of(f"mamba2-{size}-64")
    rates = torch.cat([m.A_log for m in mixers]).detach().double().exp()
    steps = F.softplus(torch.cat([m.dt_bias for m in mixers]).detach().double()).log()
    for drawn, low, high in ((rates, 1.0, 16.0), (steps, math.log(1e-3), math.log(1e-1))):
        assert low - 1e-3 <= drawn.min() < low + 0.25 * (high - low)
        assert high - 0.25 * (high - low) < drawn.max() <= high + 1e-3
        spread = (high - low) / math.sqrt(12)
        assert float(drawn.mean()) == pytest.approx((low + high) / 2, abs=4 * spread / math.sqrt(len(drawn)))
        assert float(drawn.std()) == pytest.approx(spread, rel=0.25)
    assert all(bool((m.D == 1).all()) for m in mixers)
    assert not torch.equal(mixers[0].A_log, mixers[1].A_log)


@torch.no_grad()
@pytest.mark.parametrize("size", ["tiny", "small"])
def test_the_step_sizes_of_a_first_batch_are_near_those_that_were_drawn(size):
    """Whatever the width: the projection of a normalised input moves their logarithm by about 1 / sqrt(3)."""
    model = build_model(ModelId.parse(f"mamba2-{size}-64"), 40, seed=0)
    block = model.network.backbone.layers[0]
    x = torch.randn(4, 64, model.hidden_size, generator=torch.Generator().manual_seed(0))
    step = block.mixer.in_proj(block.norm(x))[..., -block.mixer.heads :]
    assert float(step.std()) == pytest.approx(1 / math.sqrt(3), rel=0.1)
    deepest = [layer.mixer.out_proj.weight.std() for layer in model.network.backbone.layers]
    width, layers = 2 * model.hidden_size, len(deepest)
    assert float(torch.stack(deepest).mean()) == pytest.approx(1 / math.sqrt(3 * width * layers), rel=0.05)
