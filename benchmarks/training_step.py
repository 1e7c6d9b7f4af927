"""Mamba's training step, tiny size: our scan against transformers as it is. One JSON object a line.

transformers' loop has a quadratic backward, so its baseline stops at 256 tokens; the longer cases compare our two CPU
backends. Variants are interleaved; the figures are medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from transformers import MambaForCausalLM

from ehrctx.models.model import TimelineModel, build_model
from ehrctx.study import ModelId

VOCABULARY = 2_000


def step(model: TimelineModel, tokens: torch.Tensor, lengths: torch.Tensor) -> None:
    loss, n = model.loss(tokens, lengths)
    (loss / n).backward()
    model.zero_grad(set_to_none=True)


def medians(variants: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of each variant, interleaved, after one warm-up each."""
    for run in variants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, run in variants.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


def with_backend(backend: str, run: Callable[[], None]) -> Callable[[], None]:
    """`run` with every scan on one backend."""

    def chosen() -> None:
        with patch("ehrctx.models.ops.selective_scan.backend_for", return_value=backend):
            run()

    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    repeats = 3 if quick else 7
    for batch, length in ((2, 256), (8, 512), (1, 4096)):
        ours = build_model(ModelId.parse(f"mamba-tiny-{length}"), VOCABULARY, seed=0)
        tokens = torch.randint(7, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(0))
        lengths = torch.full((batch,), length)
        variants = {
            name: with_backend(name, lambda m=ours, t=tokens, n=lengths: step(m, t, n)) for name in ("numba", "torch")
        }
        baseline = "torch"
        if length <= 256:
            network = MambaForCausalLM(ours.network.config)
            network.load_state_dict(ours.network.state_dict())
            theirs = TimelineModel(network)
            variants["transformers"] = lambda m=theirs, t=tokens, n=lengths: step(m, t, n)
            baseline = "transformers"
        took = medians(variants, repeats)
        print(
            json.dumps(
                {
                    "benchmark": "training_step",
                    "case": f"mamba-tiny, {batch} x {length}, 1 thread",
                    "ours": round(batch * length / took["numba"]),
                    "baseline": round(batch * length / took[baseline]),
                    "unit": "tokens/s",
                    "ratio": round(took[baseline] / took["numba"], 1),
                    "baseline_name": f"{baseline} scan" if baseline == "torch" else "transformers as it is",
                    "repeats": repeats,
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
