"""A training step (forward, backward, clip, fused AdamW): our models against transformers as it is.

Hyena, which transformers has not, is held against itself with the published operator and all logits at once.
transformers' loop for Mamba has a quadratic backward: its baseline is 2 x 256, and a single step at 8 x 512; on a GPU
transformers is measured with mamba-ssm's kernels where they are installed, and all models are of paper size, under
bfloat16 autocast. A line of its own holds each of ours against the peak of matrix products.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import published
import torch
from measure import Variants, line, medians, options, that_fit
from torch import nn
from transformers import GPT2LMHeadModel, LlamaForCausalLM, Mamba2ForCausalLM, MambaForCausalLM

from ehrctx.models.model import TimelineModel, build_model
from ehrctx.models.ops.selective_scan import backends_for
from ehrctx.pretrain.flop import flop_per_token, matmul_rate
from ehrctx.study import ARCHITECTURES, ModelId

CLASSES: dict[str, Any] = {
    "gpt": GPT2LMHeadModel,
    "llama": LlamaForCausalLM,
    "mamba": MambaForCausalLM,
    "mamba2": Mamba2ForCausalLM,
}


def stepping(network: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    on_gpu = next(network.parameters()).is_cuda

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
            total = loss()
        total.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    return run


def ours(model: TimelineModel, tokens: torch.Tensor) -> Callable[[], None]:
    lengths = torch.full((len(tokens),), tokens.shape[1], device=tokens.device)

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
    network = CLASSES[arch](config).to(tokens.device)
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


def variants_of(model: TimelineModel, arch: str, tokens: torch.Tensor, slow: bool) -> tuple[Variants, Variants]:
    """(ours, baselines); `slow` adds transformers' loop for Mamba."""
    if arch == "mamba":
        mine = {name: with_backend(name, ours(model, tokens)) for name in backends_for(tokens.device)}
        theirs = {"transformers with mambapy": as_it_is(model, arch, tokens, use_mambapy=True)}
        if slow:
            theirs["transformers as it is"] = as_it_is(model, arch, tokens)
        return mine, theirs
    if arch == "hyena":
        other = copy.deepcopy(model)
        return {"ours": ours(model, tokens)}, {"published operator": published_hyena(other, tokens)}
    changes = {"activation_function": "gelu_new"} if arch == "gpt" else {}  # what its GPT-2 has
    return {"ours": ours(model, tokens)}, {"transformers as it is": as_it_is(model, arch, tokens, **changes)}


def measure(
    size: str, vocabulary: int, arch: str, batch: int, length: int, slow: bool, repeats: int, device: str = "cpu"
) -> None:
    model = build_model(ModelId.parse(f"{arch}-{size}-{length}"), vocabulary, seed=0).to(device)
    tokens = torch.randint(7, vocabulary, (batch, length), generator=torch.Generator().manual_seed(0)).to(device)
    mine, theirs = variants_of(model, arch, tokens, slow)
    took = medians(that_fit(mine | theirs), repeats)
    rates = {name: tokens.numel() / seconds for name, seconds in took.items()}
    share = flop_per_token(model, arch, length) / matmul_rate(device, threads=1)
    for name in (name for name in mine if name in rates):
        backend = f", {name}" if arch == "mamba" else ""
        case = f"{arch}-{size}{backend}, {batch} x {length:,}, vocabulary {vocabulary:,}"
        for baseline in theirs:
            theirs_rate = rates.get(baseline)
            line("training_step", case, "tokens/s", rates[name], theirs_rate, baseline, repeats, more_is_better=True)
        line(
            "training_step", case, "share of the peak", share * rates[name], 1.0, "matrix products alone", repeats,
            more_is_better=True,
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
    is_quick, device = options(__doc__)
    if device == "cuda":
        has_kernels = importlib.util.find_spec("mamba_ssm") is not None
        for length in (4_096,) if is_quick else (1_024, 4_096, 16_384):
            for arch in ARCHITECTURES:
                measure("paper", 39_818, arch, 16_384 // length, length, has_kernels, 5, device)
        return
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
