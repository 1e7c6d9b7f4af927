"""Llama: transformers' class as it is, with rotary positions, grouped-query attention and untied embeddings."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

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
# transformers 4 and 5 keep it in different places, and both take it by this name.
ROPE: dict[str, Any] = {"rope_theta": 500_000.0}


def build(size: str, vocabulary_size: int, context: int, special: dict[str, Any]) -> LlamaForCausalLM:
    """A randomly initialised network; rotary positions have no table, so `context` is only recorded."""
    config = LlamaConfig(
        vocab_size=vocabulary_size,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        attention_dropout=0.0,
        use_cache=False,
        **ROPE,
        **SIZES[size],
        **special,
    )
    return LlamaForCausalLM(config)
