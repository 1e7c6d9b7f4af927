"""GPT: transformers' GPT-2, learned absolute positions, tied embeddings, no dropout (as none of the others has one)."""

from __future__ import annotations

from typing import Any

from transformers import GPT2Config, GPT2LMHeadModel

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"n_layer": 4, "n_head": 4, "n_embd": 128},
    "small": {"n_layer": 6, "n_head": 6, "n_embd": 384},
    "paper": {"n_layer": 12, "n_head": 12, "n_embd": 768},
}


def build(size: str, vocabulary_size: int, context: int, special: dict[str, Any]) -> GPT2LMHeadModel:
    """A randomly initialised network with `context` learned positions."""
    config = GPT2Config(
        vocab_size=vocabulary_size,
        n_positions=context,
        activation_function="gelu_pytorch_tanh",  # GPT-2's gelu_new in one operator instead of eight
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        **SIZES[size],
        **special,
    )
    return GPT2LMHeadModel(config)
