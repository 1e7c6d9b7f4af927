"""What a tokenizer spec (`tokenizers/*.yaml`) may choose."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from ehrctx.configuration import Config, find

SPECS = Path("tokenizers")
# In this order they are the first token ids of every vocabulary.
SPECIAL_TOKENS = ("[BOS]", "[EOS]", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]")
BOS, EOS, UNK, SEP, PAD, CLS, MASK = range(len(SPECIAL_TOKENS))


class TokenizerSpec(Config):
    """A declarative tokenizer: which events become which tokens."""

    name: str
    description: str = ""
    ranking: Literal["entropy"] = Field(
        "entropy", description="which entries fill the vocabulary: p ln p + (1-p) ln(1-p)"
    )
    vocabulary_size: int = Field(39_818, gt=len(SPECIAL_TOKENS), description="the seven special tokens included")
    bins: int = Field(10, ge=1, description="weighted quantile bins of a numeric code")
    unknown: Literal["drop", "unk"] = Field("drop", description="what an event outside the vocabulary becomes")
    static_prefix: bool = Field(True, description="static events (sex, race) open every window, or none")


def find_spec(name_or_path: str) -> Path:
    """`clmbr` -> `tokenizers/clmbr.yaml`; a path stays a path."""
    return find(name_or_path, SPECS, "tokenizer")
