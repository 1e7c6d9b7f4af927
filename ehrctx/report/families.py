"""Families of models: those of one architecture and one size, which differ in context length and seed alone.

A difference between contexts or architectures is read within and between families; between two sizes it would be one of
size, and between two seeds one of luck.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from ehrctx.study import ARCHITECTURES, SIZES, ModelId

NAMES = {"gpt": "GPT", "llama": "Llama", "mamba": "Mamba", "mamba2": "Mamba-2", "hyena": "Hyena"}


@dataclass(frozen=True)
class Family:
    """`models` holds the name of each (context, seed); `name` is for readers, `GPT small` beside other sizes."""

    arch: str
    size: str
    name: str
    models: dict[tuple[int, int], str]

    @property
    def contexts(self) -> list[int]:
        return sorted({context for context, _ in self.models})

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for _, seed in self.models})

    def at(self, context: int) -> str:
        """The model of that context; of several seeds the first."""
        return self.models[context, min(seed for c, seed in self.models if c == context)]

    @property
    def longest(self) -> str:
        """The model with the longest context."""
        return self.at(self.contexts[-1])

    def extremes(self) -> tuple[tuple[int, str], tuple[int, str]] | None:
        """(context, model) of the shortest and of the longest context that one seed has, the seed that spans most."""
        spans = []
        for seed in self.seeds:
            own = sorted(context for context, s in self.models if s == seed)
            spans.append((-(own[-1] / own[0]), seed, own[0], own[-1]))
        _, seed, short, long = min(spans)
        return ((short, self.models[short, seed]), (long, self.models[long, seed])) if short < long else None


def families(models: pl.DataFrame) -> list[Family]:
    """The families of a model table (models.csv), by architecture, then by size."""
    found: dict[tuple[str, str], dict[tuple[int, int], str]] = {}
    for model in models["model"]:
        identity = ModelId.parse(model)
        found.setdefault((identity.arch, identity.size), {})[identity.context, identity.seed] = model
    ordered = sorted(found, key=lambda key: (ARCHITECTURES.index(key[0]), SIZES.index(key[1])))
    of_arch = [arch for arch, _ in ordered]
    return [
        Family(arch, size, NAMES[arch] if of_arch.count(arch) == 1 else f"{NAMES[arch]} {size}", found[arch, size])
        for arch, size in ordered
    ]
