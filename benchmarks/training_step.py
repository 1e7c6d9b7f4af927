"""A training step (forward, backward, clip, fused AdamW), one thread: our models against transformers as it is.

Hyena, which transformers has not, is held against itself with the published operator and all logits at once.
transformers' loop for Mamba has a quadratic backward: its baseline is 2 x 256, and a single step at 8 x 512.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import published
import torch
from measure import Variants, line, medians, quick
from torch import nn
from transformers import GPT2LMHeadModel, LlamaForCausalLM, Mamba2ForCausalLM, MambaForCausalLM

from ehrctx.models.model import TimelineModel, build_model
from ehrctx.study import ARCHITECTURES, ModelId

CLASSES: dict[str, Any] = {
    "gpt": GPT2LMHeadModel,
    "llama": LlamaForCausalLM,
    "mamba": MambaForCausalLM,
    "mamba2": Mamba2ForCausalLM,
}


def stepping(network: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def run() -> None:
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    return run


def ours(model: TimelineModel, tokens: torch.Tensor) -> Callable[[], None]:
    lengths = torch.full((len(tokens),), tokens.shape[1])

    def loss() -> torch.Tensor:
        total, n = model.loss(tokens, lengths)
        return total / n

    return stepping(model, loss)


def with_backend(backend: str, run: Callable[[], None]) -> Callable[[], None]:
    """`run` with every scan on one backend."""

    def chosen() -> None:
        with patch("ehrctx.models.ops.selective_scan.backend_for", return_value=backend):
            run()

    return chosen


def as_it_is(model: TimelineModel, arch: str, tokens: torch.Tensor, **changes: Any) -> Callable[[], None]:
    """transformers' own class, of the same configuration but for `changes`."""
    config = model.network.config.__class__(**{**model.network.config.to_dict(), **changes})
    network = CLASSES[arch](config)
    return stepping(network, lambda: network(input_ids=tokens, labels=tokens).loss)


def published_hyena(model: TimelineModel, tokens: torch.Tensor) -> Callable[[], None]:
    vocabulary = model.network.config.vocab_size

    def loss() -> torch.Tensor:
        logits = model.network(tokens).logits[:, :-1]
        return nn.functional.cross_entropy(logits.reshape(-1, vocabulary), tokens[:, 1:].reshape(-1))

    run = stepping(model, loss)

    def patched() -> None:
        with patch("ehrctx.models.hyena.long_convolution", published.long_convolution):
            run()

    return patched


def measure(size: str, vocabulary: int, arch: str, batch: int, length: int, slow: bool, repeats: int) -> None:
    """`slow` adds transformers' loop for Mamba."""
    model = build_model(ModelId.parse(f"{arch}-{size}-{length}"), vocabulary, seed=0)
    tokens = torch.randint(7, vocabulary, (batch, length), generator=torch.Generator().manual_seed(0))
    variants: Variants = {}
    baselines = {"transformers": "transformers as it is"}
    if arch == "mamba":
        variants = {backend: with_backend(backend, ours(model, tokens)) for backend in ("numba", "torch")}
        variants["mambapy"] = as_it_is(model, arch, tokens, use_mambapy=True)
        baselines = {"mambapy": "transformers with mambapy"}
        if slow:
            variants["transformers"] = as_it_is(model, arch, tokens)
            baselines["transformers"] = "transformers as it is"
    elif arch == "hyena":
        other = build_model(ModelId.parse(f"{arch}-{size}-{length}"), vocabulary, seed=0)
        variants = {"ours": ours(model, tokens), "published": published_hyena(other, tokens)}
        baselines = {"published": "published operator"}
    else:
        changes = {"activation_function": "gelu_new"} if arch == "gpt" else {}  # what its GPT-2 has
        variants = {"ours": ours(model, tokens), "transformers": as_it_is(model, arch, tokens, **changes)}
    took = medians(variants, repeats)
    for mine in (name for name in variants if name not in baselines):
        for name, called in baselines.items():
            backend = f", {mine}" if arch == "mamba" else ""
            line(
                "training_step", f"{arch}-{size}{backend}, {batch} x {length:,}, vocabulary {vocabulary:,}", "tokens/s",
                batch * length / took[mine], batch * length / took[name], called, repeats, more_is_better=True,
            )  # fmt: skip


def measure_growth(repeats: int) -> None:
    """Four times the context against four times the step: a linear architecture comes out at 1."""
    steps: Variants = {}
    for length in (4_096, 16_384):
        model = build_model(ModelId.parse(f"mamba-tiny-{length}"), 2_000, seed=0)
        tokens = torch.randint(7, 2_000, (1, length), generator=torch.Generator().manual_seed(0))
        steps[f"{length}"] = ours(model, tokens)
    took = medians(steps, repeats)
    line(
        "training_step", "mamba-tiny, 1 x 16,384 against four of 1 x 4,096", "ms", 1e3 * took["16384"],
        4e3 * took["4096"], "ours at a quarter of the length", repeats, more_is_better=False,
    )  # fmt: skip


def measure_loop() -> None:
    """transformers as it is at 8 x 512: one step of each, as its loop takes minutes; it has nothing to warm up."""
    model = build_model(ModelId.parse("mamba-tiny-512"), 2_000, seed=0)
    tokens = torch.randint(7, 2_000, (8, 512), generator=torch.Generator().manual_seed(0))
    theirs = medians({"loop": as_it_is(model, "mamba", tokens)}, 1, warm_up=False)["loop"]
    for backend in ("numba", "torch"):
        mine = medians({backend: with_backend(backend, ours(model, tokens))}, 3)[backend]
        line(
            "training_step", f"mamba-tiny, {backend}, 8 x 512, vocabulary 2,000", "tokens/s", tokens.numel() / mine,
            tokens.numel() / theirs, "transformers as it is", 1, more_is_better=True,
        )  # fmt: skip


def main() -> None:
    is_quick = quick(__doc__)
    torch.set_num_threads(1)
    repeats = 3 if is_quick else 5
    measure("tiny", 2_000, "mamba", 2, 256, True, repeats)
    for arch in ARCHITECTURES:
        measure("tiny", 2_000, arch, 8, 512, False, repeats)
    if not is_quick:
        measure_loop()
        measure_growth(repeats)
        for arch in ARCHITECTURES:
            measure("paper", 39_818, arch, 1, 1_024, False, 3)


if __name__ == "__main__":
    main()
