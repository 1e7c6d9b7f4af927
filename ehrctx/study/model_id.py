"""Names of models: what each part may be."""

from __future__ import annotations

import re
from typing import Self

from ehrctx.configuration import Config
from ehrctx.errors import nearest

ARCHITECTURES = ("gpt", "llama", "mamba", "mamba2", "hyena")
SIZES = ("tiny", "small", "paper")
MODEL_ID = re.compile(r"(?P<arch>[a-z0-9]+)-(?P<size>[a-z]+)-(?P<context>[0-9]+)(?:-s(?P<seed>[0-9]+))?")
MINIMUM_CONTEXT = 8
LARGEST_SEED = 2**31 - 1  # what every library here takes


class ModelId(Config):
    """`<arch>-<size>-<context>[-s<seed>]`, the name of a model everywhere: `mamba-tiny-4096`."""

    arch: str
    size: str
    context: int
    seed: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        match = MODEL_ID.fullmatch(text)
        if not match:
            raise ValueError(f"{text!r} is not <arch>-<size>-<context>[-s<seed>], as in 'mamba-tiny-4096'")
        parts = match.groupdict()
        for part, known in (("arch", ARCHITECTURES), ("size", SIZES)):
            if parts[part] not in known:
                raise ValueError(f"{text!r}: no {part} {parts[part]!r}; {nearest(parts[part], known)}")
        if int(parts["seed"] or 0) > LARGEST_SEED:
            raise ValueError(f"{text!r}: a seed of at most {LARGEST_SEED:,} is needed")
        if int(parts["context"]) < MINIMUM_CONTEXT:
            raise ValueError(f"{text!r}: a context length of at least {MINIMUM_CONTEXT} tokens is needed")
        return cls(arch=parts["arch"], size=parts["size"], context=int(parts["context"]), seed=int(parts["seed"] or 0))


def known_model(text: str) -> str:
    """`text` again; raises ValueError where it is no model's name."""
    ModelId.parse(text)
    return text
