"""Hyena of order 2 (Poli et al. 2023, arXiv 2302.10866) as a `PreTrainedModel`, as transformers has none.

A block gates a value with one projection of the input, convolves it with a filter as long as the sequence, and gates
the result with another. The filter is implicit: a small network of the lag, damped exponentially (the settings are
HyenaDNA's, arXiv 2306.15794). Lags are measured in fractions of `filter_length`, a constant of the model and not the
length of the input, so that a position's state is the same whatever follows it and however long the batch is.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from ehrctx.models.ops.long_convolution import long_convolution
from ehrctx.models.ops.short_convolution import depthwise_causal_convolution

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"num_hidden_layers": 4, "hidden_size": 128, "intermediate_size": 192},
    "small": {"num_hidden_layers": 8, "hidden_size": 384, "intermediate_size": 512},
    "paper": {"num_hidden_layers": 16, "hidden_size": 768, "intermediate_size": 1024},
}


# Arguments that transformers passes to every model, and that change no number of one without attention or a cache.
WITHOUT_EFFECT = ("use_cache", "return_dict", "output_attentions", "cache_position")


class HyenaConfig(PretrainedConfig):
    """`filter_length`: the lag at which the filter's damping and its position features are scaled to 1."""

    model_type = "ehrctx_hyena"

    def __init__(
        self,
        vocab_size: int = 39_818,
        hidden_size: int = 768,
        num_hidden_layers: int = 16,
        intermediate_size: int = 1024,
        filter_length: int = 1024,
        filter_width: int = 64,
        filter_features: int = 5,
        filter_frequency: float = 10.0,
        short_kernel: int = 3,
        layer_norm_eps: float = 1e-5,
        initializer_range: float = 0.02,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.num_hidden_layers, self.intermediate_size = num_hidden_layers, intermediate_size
        self.filter_length, self.filter_width, self.filter_features = filter_length, filter_width, filter_features
        self.filter_frequency, self.short_kernel = filter_frequency, short_kernel
        self.layer_norm_eps, self.initializer_range = layer_norm_eps, initializer_range
        super().__init__(**{"tie_word_embeddings": tie_word_embeddings, **kwargs})


class FilterLinear(nn.Linear):
    """A layer of the implicit filter: initialised in its own way, and never decayed."""


class ResidualLinear(nn.Linear):
    """A layer that writes to the residual stream."""


class ImplicitFilter(nn.Module):
    """lag -> filter value of every channel: position features, sine network, exponential damping."""

    FASTEST, SLOWEST, TARGET = 0.3, 1.5, 1e-2  # the fastest channel falls to TARGET at .3 of filter_length

    def __init__(self, config: HyenaConfig) -> None:
        super().__init__()
        self.config = config
        width, features = config.filter_width, config.filter_features
        self.inner = nn.ModuleList([FilterLinear(inputs, width) for inputs in (features, width, width)])
        self.out = FilterLinear(width, config.hidden_size, bias=False)
        self.frequency = nn.Parameter(torch.full((width,), config.filter_frequency))
        self.skip = nn.Parameter(torch.randn(config.hidden_size))
        self._kept: tuple[tuple[tuple[int, int], ...], Tensor] | None = None

    def _features(self, lag: Tensor) -> Tensor:
        """[length, features]: the lag and sines and cosines of it; `lag` float32[length] in units of filter_length."""
        bands = torch.linspace(1e-4, (self.config.filter_features - 1) // 2 - 1, (self.config.filter_features - 1) // 2)
        angle = 2 * math.pi * lag.unsqueeze(1) * bands.to(lag.device)
        return torch.cat([lag.unsqueeze(1), torch.cos(angle), -torch.sin(angle)], dim=1)

    def forward(self, length: int) -> Tensor:
        """The filter at lags 0 .. length - 1, float32 [channels, length].

        It depends on the weights alone, so in evaluation the longest one so far is kept, until a weight changes.
        """
        if self.training or torch.is_grad_enabled():
            self._kept = None
            return self._filter(length)
        weights = tuple((p.data_ptr(), p._version) for p in self.parameters())
        if self._kept is None or self._kept[0] != weights or self._kept[1].shape[1] < length:
            self._kept = weights, self._filter(length)
        return self._kept[1][:, :length]

    def _filter(self, length: int) -> Tensor:
        weight = self.out.weight
        with torch.autocast(weight.device.type, enabled=False):
            lag = torch.arange(length, dtype=torch.float32, device=weight.device) / self.config.filter_length
            x = self._features(lag)
            for layer in self.inner:
                assert isinstance(layer, FilterLinear)
                x = torch.sin(self.frequency.float() * F.linear(x, layer.weight.float(), layer.bias.float()))
            slow, fast = (-math.log(self.TARGET) / share for share in (self.SLOWEST, self.FASTEST))
            decay = torch.linspace(slow, fast, weight.shape[0], device=weight.device)
            return F.linear(x, weight.float()).t() * torch.exp(-decay.unsqueeze(1) * lag)


class HyenaMixer(nn.Module):
    """y = out(x0 * conv(x1 * v)), where x0, x1 and v are short convolutions of projections of the input."""

    def __init__(self, config: HyenaConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.in_proj = nn.Linear(width, 3 * width)
        self.short = nn.Conv1d(3 * width, 3 * width, config.short_kernel, groups=3 * width)
        self.filter = ImplicitFilter(config)
        self.out_proj = ResidualLinear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, length, hidden] -> the same shape; causal up to rounding."""
        assert self.short.bias is not None
        projected = depthwise_causal_convolution(self.in_proj(x), self.short.weight.squeeze(1), self.short.bias)
        x0, x1, v = projected.chunk(3, dim=-1)
        mixed = long_convolution((x1 * v).transpose(1, 2), self.filter(x.shape[1]), self.filter.skip)
        return self.out_proj(x0 * mixed.transpose(1, 2))


class HyenaBlock(nn.Module):
    def __init__(self, config: HyenaConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mixer = HyenaMixer(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = ResidualLinear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class HyenaPreTrainedModel(PreTrainedModel):
    config_class = HyenaConfig
    base_model_prefix = "model"

    def _init_weights(self, module: nn.Module) -> None:
        """Normal weights, smaller by the depth where they write to the residual stream (as in GPT-2); the filter and
        the short convolution keep torch's own, of order 1 / sqrt(fan-in)."""
        if isinstance(module, FilterLinear) or not isinstance(module, nn.Linear | nn.Embedding):
            return
        depth = 2 * self.config.num_hidden_layers if isinstance(module, ResidualLinear) else 1
        nn.init.normal_(module.weight, std=self.config.initializer_range / math.sqrt(depth))
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def refuse_unsupported(attention_mask: Tensor | None, others: dict[str, Any]) -> None:
    """Raises ValueError for what a long convolution cannot do, and for arguments that would be left unread."""
    if attention_mask is not None and bool((attention_mask[:, 1:] > attention_mask[:, :-1]).any()):
        raise ValueError("Hyena cannot leave out padding before a token. Pad on the right.")
    unread = [name for name, value in others.items() if value is not None and name not in WITHOUT_EFFECT]
    if unread:
        raise ValueError(f"Hyena has no {unread[0]!r}. Leave it out.")


class HyenaModel(HyenaPreTrainedModel):
    def __init__(self, config: HyenaConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([HyenaBlock(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        assert isinstance(value, nn.Embedding)
        self.embeddings = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **others: Any,
    ) -> BaseModelOutput:
        """Right-padded `input_ids` [batch, length]; no mask is needed, as nothing looks ahead.

        Raises ValueError for padding before a token, and for arguments that a Hyena has not (a cache, positions).
        """
        refuse_unsupported(attention_mask, others)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either input_ids or inputs_embeds.")
        x = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        states = [x]
        for layer in self.layers:
            x = layer(x)
            states.append(x)
        last = self.norm(x)
        wants_all = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        # as in transformers' models, the last one is after the norm
        return BaseModelOutput(last_hidden_state=last, hidden_states=(*states[:-1], last) if wants_all else None)


class HyenaForCausalLM(HyenaPreTrainedModel, GenerationMixin):
    """`generate` passes the whole sequence through again for every new token: a long convolution keeps no state."""

    def __init__(self, config: HyenaConfig) -> None:
        super().__init__(config)
        self.model = HyenaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        **others: Any,
    ) -> CausalLMOutput:
        """As transformers' causal models: `labels` [batch, length] are those of the inputs, -100 is left out.

        Logits of the last `logits_to_keep` positions, or of all if 0. Raises ValueError as `HyenaModel.forward`.
        """
        output = self.model(input_ids, attention_mask, inputs_embeds, **others)
        logits = self.lm_head(output.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        return CausalLMOutput(loss=loss, logits=logits, hidden_states=output.hidden_states)

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Tensor]:
        """Raises ValueError for padded prompts: a filter cannot step over a gap."""
        if attention_mask is not None and not bool(attention_mask.all()):
            raise ValueError("Hyena cannot leave out padding. Generate from prompts of one length, or one at a time.")
        return {"input_ids": input_ids}


def build(size: str, vocabulary_size: int, context: int, special: dict[str, Any]) -> HyenaForCausalLM:
    """A randomly initialised network whose filters are scaled to `context`."""
    return HyenaForCausalLM(HyenaConfig(vocab_size=vocabulary_size, filter_length=context, **SIZES[size], **special))
