"""Llama: transformers' class and weights, with rotary positions, grouped-query attention and untied embeddings.

Its rotary positions, attention and norms are replaced by ours, which keep the positions in float32 and pass over memory
less. They have the same parameters under the same names, so checkpoints load either way; tests prove equal logits.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from ehrctx.errors import InputError
from ehrctx.models.ops.rms_norm import RMSNorm
from ehrctx.models.ops.rotary import RotaryPositions, rotate
from ehrctx.study import Rope

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "num_hidden_layers": 4,
        "hidden_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 448,
    },
    "small": {
        "num_hidden_layers": 6,
        "hidden_size": 384,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "intermediate_size": 1344,
    },
    "paper": {
        "num_hidden_layers": 8,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "intermediate_size": 2688,
    },
}


THETA = 500_000.0


class RotaryAttention(nn.Module):
    """transformers' LlamaAttention (same parameters), with queries and keys turned in float32."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.q_proj, self.k_proj = attention.q_proj, attention.k_proj
        self.v_proj, self.o_proj = attention.v_proj, attention.o_proj
        self.head_width, self.layer = int(attention.head_dim), int(attention.layer_idx)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """hidden_states [batch, length, hidden] -> the same shape, and no attention weights.

        `position_embeddings` is what `RotaryPositions` gives; a mask and a cache are as transformers has them.
        """
        heads = (*hidden_states.shape[:-1], -1, self.head_width)
        cos, sin = (angle.unsqueeze(2) for angle in position_embeddings)
        q = rotate(self.q_proj(hidden_states).view(heads), cos, sin).transpose(1, 2)
        k = rotate(self.k_proj(hidden_states).view(heads), cos, sin).transpose(1, 2)
        v = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        # transformers 4 names it in the singular
        cache = past_key_values if past_key_values is not None else kwargs.get("past_key_value")
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        causal = attention_mask is None and q.shape[2] > 1
        mixed = F.scaled_dot_product_attention(q, k, v, attention_mask, is_causal=causal, enable_gqa=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), None


def use_our_operators(network: LlamaForCausalLM) -> LlamaForCausalLM:
    """Replaces positions, attention and norms by ours, in place; the parameters are the same objects.

    Raises InputError for a checkpoint whose rotary frequencies depend on the length of the input.
    """
    model: Any = network.model
    if model.rotary_emb.rope_type in ("dynamic", "longrope"):
        raise InputError(
            f"config.json: the rotary scaling {model.rotary_emb.rope_type!r} changes with the length of the input, "
            f"which is not supported. Give a model with linear or yarn scaling, or with none."
        )
    model.rotary_emb = RotaryPositions(model.rotary_emb)
    for layer in model.layers:
        layer.self_attn = RotaryAttention(layer.self_attn)
        layer.input_layernorm = RMSNorm(layer.input_layernorm)
        layer.post_attention_layernorm = RMSNorm(layer.post_attention_layernorm)
    model.norm = RMSNorm(model.norm)
    return network


def positions(rope: Rope, context: int) -> dict[str, Any]:
    """`rope` in the words of LlamaConfig, which transformers 4 and 5 both take, and each writes in its own way."""
    rope = rope.of(context)
    said: dict[str, Any] = {"rope_theta": rope.theta or THETA, "max_position_embeddings": context}
    if rope.scaling != "none":
        said["rope_scaling"] = {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling == "yarn":
        said["rope_scaling"]["original_max_position_embeddings"] = rope.original(context)
        if rope.original_context is not None:
            # transformers 4 takes the factor to be the ratio of the two
            said["max_position_embeddings"] = round(rope.factor * rope.original_context)
    return said


def build(size: str, vocabulary_size: int, context: int, special: dict[str, Any], rope: Rope) -> LlamaForCausalLM:
    """A randomly initialised network; rotary positions have no table: `context` is recorded, and scaled by `rope`."""
    config = LlamaConfig(
        vocab_size=vocabulary_size,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        attention_dropout=0.0,
        use_cache=False,
        **positions(rope, context),
        **SIZES[size],
        **special,
    )
    return use_our_operators(LlamaForCausalLM(config))
