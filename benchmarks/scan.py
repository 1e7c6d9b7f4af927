"""Mamba's selective scan, forward and backward: ours against transformers' two ways. State 16.

transformers' loop has a quadratic backward: it runs on the shortest case alone.
"""

from __future__ import annotations

from functools import partial

import published
import torch
from measure import Variants, compare, options, trained

from ehrctx.models.ops.selective_scan import backends_for, selective_scan

STATE = 16


def inputs(batch: int, length: int, channels: int, device: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    delta = torch.nn.functional.softplus(normal(batch, length, channels) - 4)
    a = -torch.arange(1.0, STATE + 1).repeat(channels, 1)
    found = [normal(batch, length, channels), delta, a]
    found += [normal(batch, length, STATE), normal(batch, length, STATE), normal(channels)]
    return [x.to(device).requires_grad_() for x in found]


def main() -> None:
    is_quick, device = options(__doc__)
    if device == "cuda":  # the study's width, 16,384 tokens at a time
        cases = [(4, 4_096, 1_536)] if is_quick else [(16_384 // n, n, 1_536) for n in (1_024, 4_096, 16_384)]
    else:
        cases = [(8, 512, 256), (1, 1_024, 256), (1, 4_096, 256)]
        cases += [] if is_quick else [(1, 16_384, 256), (1, 4_096, 1_536)]
    for batch, length, channels in cases:
        leaves = inputs(batch, length, channels, device)
        ours: Variants = {
            name: trained(partial(selective_scan, backend=name), leaves) for name in backends_for(torch.device(device))
        }
        baselines: Variants = {
            "transformers with mambapy": trained(partial(published.selective_scan, use_mambapy=True), leaves)
        }
        if batch * length <= 1_024:
            baselines["transformers as it is"] = trained(published.selective_scan, leaves)
        if "mamba_ssm" in ours:
            baselines["mamba-ssm's kernel"] = ours.pop("mamba_ssm")
        repeats = 3 if is_quick or length > 4_096 else 5
        compare("scan", f"{batch} x {length:,} x {channels:,} channels", ours, baselines, repeats)


if __name__ == "__main__":
    main()
