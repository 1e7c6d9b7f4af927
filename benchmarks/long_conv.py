"""Hyena's long convolution, forward and backward on one thread: ours against the published operator."""

from __future__ import annotations

import published
import torch
from measure import line, medians, peak_mib, quick, trained

from ehrctx.models.ops.long_convolution import long_convolution


def main() -> None:
    is_quick = quick(__doc__)
    torch.set_num_threads(1)
    for batch, channels, length in [(8, 128, 512), (1, 768, 4_096)] + ([] if is_quick else [(1, 768, 16_384)]):
        generator = torch.Generator().manual_seed(0)
        shapes = ((batch, channels, length), (channels, length), (channels,))
        leaves = [torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes]
        ours, theirs = trained(long_convolution, leaves), trained(published.long_convolution, leaves)
        repeats = 3 if is_quick else 7
        took = medians({"ours": ours, "theirs": theirs}, repeats)
        line(
            "long_conv", f"{batch} x {channels} channels x {length:,}", "ms", 1e3 * took["ours"], 1e3 * took["theirs"],
            "published operator", repeats, more_is_better=False,
            ours_peak_mib=peak_mib(ours), baseline_peak_mib=peak_mib(theirs),
        )  # fmt: skip


if __name__ == "__main__":
    main()
