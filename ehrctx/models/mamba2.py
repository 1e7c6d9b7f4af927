"""Mamba-2 (Dao & Gu 2024, arXiv 2405.21060): transformers' class and weights, with a mixer whose scan is ours.

transformers' own path without CUDA kernels holds the matrices of all chunks of 256 steps at once, and joins the chunks
by products that are quadratic in their number. The mixer below has the same parameters under the same names, so
checkpoints load either way; tests prove equal logits.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Mamba2Config, Mamba2ForCausalLM

from ehrctx.models import mamba
from ehrctx.models.ops.rms_norm import rms_norm
from ehrctx.models.ops.short_convolution import depthwise_causal_convolution
from ehrctx.models.ops.state_space_duality import ssd_scan

# Heads of 64, and 128 states, are the authors'. The tiny one has heads of 32: each has one decay, and four were few.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"num_hidden_layers": 4, "hidden_size": 128, "head_dim": 32, "num_heads": 8, "state_size": 64},
    "small": {"num_hidden_layers": 12, "hidden_size": 384, "head_dim": 64, "num_heads": 12, "state_size": 64},
    "paper": {"num_hidden_layers": 24, "hidden_size": 768, "head_dim": 64, "num_heads": 24, "state_size": 128},
}
DECAY_RATES = (1.0, 16.0)
STEP_SIZES = (1e-3, 1e-1)


class DualMixer(nn.Module):
    """transformers' Mamba2Mixer (same parameters) on our scan; training and evaluation alike, no cache."""

    def __init__(self, mixer: Any) -> None:
        super().__init__()
        self.in_proj, self.conv1d, self.out_proj = mixer.in_proj, mixer.conv1d, mixer.out_proj
        self.dt_bias, self.A_log, self.D, self.norm = mixer.dt_bias, mixer.A_log, mixer.D, mixer.norm
        self.heads, self.head_dim = int(mixer.num_heads), int(mixer.head_dim)
        self.groups, self.state = int(mixer.n_groups), int(mixer.ssm_state_size)
        self.step_limit = tuple(map(float, mixer.time_step_limit))

    def forward(
        self, hidden_states: Tensor, cache_params: Any = None, *, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """hidden_states [batch, length, hidden] -> the same shape; causal, so right padding needs no mask.

        Raises InputError if there is a cache.
        """
        mamba.refuse_cache(cache_params)
        inner, maps = self.heads * self.head_dim, self.groups * self.state
        projected = self.in_proj(mamba.without_padding(hidden_states, attention_mask))
        gate, mixed, step = projected.split([inner, inner + 2 * maps, self.heads], dim=-1)
        mixed = F.silu(depthwise_causal_convolution(mixed, self.conv1d.weight.squeeze(1), self.conv1d.bias))
        mixed = mamba.without_padding(mixed, attention_mask)
        x, b, c = mixed.split([inner, maps, maps], dim=-1)
        delta = F.softplus(step.float() + self.dt_bias.float())
        if self.step_limit != (0.0, math.inf):
            delta = delta.clamp(*self.step_limit)
        y = ssd_scan(
            x.unflatten(-1, (self.heads, self.head_dim)),
            delta,
            -torch.exp(self.A_log.float()),
            b.unflatten(-1, (self.groups, self.state)),
            c.unflatten(-1, (self.groups, self.state)),
            self.D,
        )
        return self.out_proj(self._gated_norm(y.flatten(-2), gate))

    def _gated_norm(self, y: Tensor, gate: Tensor) -> Tensor:
        if self.groups > 1:  # of each group its own mean
            return self.norm(y.to(gate.dtype), gate)
        return rms_norm(y * F.silu(gate.float()), self.norm.weight, self.norm.variance_epsilon).to(gate.dtype)


def use_our_operators(network: Mamba2ForCausalLM) -> Mamba2ForCausalLM:
    """Replaces every mixer and norm by ours, in place, as in Mamba; returns the network."""
    mamba.use_our_operators(network, DualMixer)
    return network


@torch.no_grad()
def _initialise(mixer: DualMixer, layers: int) -> None:
    """As the authors do (`mamba_ssm`: modules.mamba2, models.mixer_seq_simple): decay rates uniform, step sizes
    log-uniform, projections of order 1 / sqrt(fan-in), smaller by the depth where they write to the residual stream.

    transformers takes the decay rates 1, 2, 3 … heads, and an input projection of one scale for all widths, which
    spreads the step sizes far beyond those that were drawn. Its `rescale_prenorm_residual` is of no use: it also
    rescales weights that are loaded.
    """
    mixer.A_log.uniform_(*DECAY_RATES).log_()
    low, high = (math.log(size) for size in STEP_SIZES)
    step = torch.empty_like(mixer.dt_bias).uniform_(low, high).exp_()
    mixer.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
    mixer.D.fill_(1.0)
    mixer.in_proj.reset_parameters()
    mixer.out_proj.reset_parameters()
    mixer.out_proj.weight /= math.sqrt(layers)


def build(size: str, vocabulary_size: int, context: int, special: dict[str, Any]) -> Mamba2ForCausalLM:
    """A randomly initialised network; Mamba-2 has no positions, so `context` shapes nothing."""
    config = Mamba2Config(
        vocab_size=vocabulary_size,
        expand=2,
        n_groups=1,
        initializer_range=0.02,
        use_cache=False,
        tie_word_embeddings=True,
        **SIZES[size],
        **special,
    )
    network = use_our_operators(Mamba2ForCausalLM(config))
    for module in network.modules():
        if isinstance(module, DualMixer):
            _initialise(module, config.num_hidden_layers)
    return network
