"""Mamba's selective scan, forward and backward on one thread: ours against transformers' two ways. State 16.

transformers' loop has a quadratic backward: it runs on the shortest case alone.
"""

from __future__ import annotations

import published
import torch
from measure import Variants, line, medians, peak_mib, quick, trained

from ehrctx.models.ops.selective_scan import selective_scan

STATE = 16


def inputs(batch: int, length: int, channels: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    delta = torch.nn.functional.softplus(normal(batch, length, channels) - 4)
    a = -torch.arange(1.0, STATE + 1).repeat(channels, 1)
    found = [normal(batch, length, channels), delta, a]
    return [*found, normal(batch, length, STATE), normal(batch, length, STATE), normal(channels)]


def main() -> None:
    is_quick = quick(__doc__)
    torch.set_num_threads(1)
    cases = [(8, 512, 256), (1, 1_024, 256), (1, 4_096, 256)]
    cases += [] if is_quick else [(1, 16_384, 256), (1, 4_096, 1_536)]
    for batch, length, channels in cases:
        leaves = [x.requires_grad_() for x in inputs(batch, length, channels)]
        variants: Variants = {
            "numba": trained(lambda *x: selective_scan(*x, backend="numba"), leaves),
            "torch": trained(lambda *x: selective_scan(*x, backend="torch"), leaves),
            "mambapy": trained(lambda *x: published.selective_scan(*x, use_mambapy=True), leaves),
        }
        if batch * length <= 1_024:
            variants["transformers"] = trained(published.selective_scan, leaves)
        repeats = 3 if is_quick or length > 4_096 else 5
        took = medians(variants, repeats)
        peaks = {name: peak_mib(run) for name, run in variants.items()}
        for ours in ("numba", "torch"):
            for name in ("mambapy", "transformers"):
                if name in variants:
                    line(
                        "scan", f"{ours}, {batch} x {length:,} x {channels:,} channels", "ms",
                        1e3 * took[ours], 1e3 * took[name],
                        "transformers with mambapy" if name == "mambapy" else "transformers as it is", repeats,
                        more_is_better=False, ours_peak_mib=peaks[ours], baseline_peak_mib=peaks[name],
                    )  # fmt: skip


if __name__ == "__main__":
    main()
