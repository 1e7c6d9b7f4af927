"""Mamba-1: transformers' class and weights, with a mixer whose scan is ours, and our norms.

transformers' own path without CUDA kernels is a Python loop with a quadratic backward. The mixer below has the same
parameters under the same names, so checkpoints load either way; tests prove equal logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MambaConfig, MambaForCausalLM

from ehrctx.errors import InputError
from ehrctx.models.ops.rms_norm import RMSNorm
from ehrctx.models.ops.selective_scan import check_backend, selective_scan
from ehrctx.models.ops.short_convolution import depthwise_causal_convolution

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"num_hidden_layers": 4, "hidden_size": 128, "state_size": 16},
    "small": {"num_hidden_layers": 12, "hidden_size": 384, "state_size": 16},
    "paper": {"num_hidden_layers": 24, "hidden_size": 768, "state_size": 16},
}


def refuse_cache(cache: Any) -> None:
    """Raises InputError if a mixer is given a cache: its scan begins every input at a state of zero."""
    if cache is not None:
        raise InputError(
            "a Mamba with ehrctx's operators has no cache, so `use_cache=True` would continue from nothing. Generate "
            "with `use_cache=False`, or load the folder that `ehrctx export` writes with transformers."
        )


def without_padding(x: Tensor, attention_mask: Tensor | None) -> Tensor:
    """x [batch, length, channels], zero where `attention_mask` [batch, length] is: padding leaves no state behind."""
    return x if attention_mask is None else (x * attention_mask.unsqueeze(-1)).to(x.dtype)


class ScanMixer(nn.Module):
    """transformers' MambaMixer (same parameters) on the chunked scan; training and evaluation alike, no cache."""

    def __init__(self, mixer: Any) -> None:
        super().__init__()
        self.in_proj, self.x_proj, self.dt_proj = mixer.in_proj, mixer.x_proj, mixer.dt_proj
        self.conv1d, self.out_proj = mixer.conv1d, mixer.out_proj
        self.A_log, self.D = mixer.A_log, mixer.D
        self.rank, self.state = int(mixer.time_step_rank), int(mixer.ssm_state_size)
        self.backend: str | None = None  # the best for the device

    def forward(
        self, hidden_states: Tensor, cache_params: Any = None, *, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """hidden_states [batch, length, hidden] -> the same shape; causal, so right padding needs no mask.

        Raises InputError if there is a cache.
        """
        refuse_cache(cache_params)
        u, gate = self.in_proj(without_padding(hidden_states, attention_mask)).chunk(2, dim=-1)
        u = F.silu(depthwise_causal_convolution(u, self.conv1d.weight.squeeze(1), self.conv1d.bias))
        u = without_padding(u, attention_mask)
        step, b, c = self.x_proj(u).split([self.rank, self.state, self.state], dim=-1)
        delta = F.softplus(F.linear(step, self.dt_proj.weight) + self.dt_proj.bias.float())
        y = selective_scan(u, delta, -torch.exp(self.A_log.float()), b, c, self.D, backend=self.backend)
        return self.out_proj(y.to(gate.dtype) * F.silu(gate))


def use_our_operators(network: Any, mixer: Callable[[Any], nn.Module] = ScanMixer) -> Any:
    """Replaces every mixer (by `mixer` of it) and norm by ours, in place; the parameters are the same objects.

    `network` is a MambaForCausalLM, or, with a mixer of its own, a Mamba2ForCausalLM; it is returned.
    """
    for block in network.backbone.layers:
        block.mixer, block.norm = mixer(block.mixer), RMSNorm(block.norm)
    network.backbone.norm_f = RMSNorm(network.backbone.norm_f)
    network.config.use_cache = network.generation_config.use_cache = False  # an export says True
    return network


def choose_scan(network: nn.Module, backend: str, device: torch.device) -> None:
    """Lets every mixer of `network` scan with `backend`, one of `selective_scan.BACKENDS`, instead of the best.

    Raises ValueError where the backend is not for this device, RuntimeError where it cannot be used here.
    """
    check_backend(backend, device)
    for module in network.modules():
        if isinstance(module, ScanMixer):
            module.backend = backend


def build(size: str, vocabulary_size: int, context: int, special: dict[str, Any]) -> MambaForCausalLM:
    """A randomly initialised network; Mamba has no positions, so `context` shapes nothing."""
    config = MambaConfig(
        vocab_size=vocabulary_size, expand=2, use_cache=False, tie_word_embeddings=True, **SIZES[size], **special
    )
    return use_our_operators(MambaForCausalLM(config))
