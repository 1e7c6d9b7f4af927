"""Hyena's long convolution, forward and backward: ours against the published operator."""

from __future__ import annotations

import published
import torch
from measure import compare, options, trained

from ehrctx.models.ops.long_convolution import long_convolution


def main() -> None:
    is_quick, device = options(__doc__)
    if device == "cuda":
        cases = [(4, 768, 4_096)] if is_quick else [(16_384 // n, 768, n) for n in (1_024, 4_096, 16_384)]
    else:
        cases = [(8, 128, 512), (1, 768, 4_096)] + ([] if is_quick else [(1, 768, 16_384)])
    for batch, channels, length in cases:
        generator = torch.Generator().manual_seed(0)
        shapes = ((batch, channels, length), (channels, length), (channels,))
        leaves = [torch.randn(*shape, generator=generator).to(device).requires_grad_() for shape in shapes]
        ours = {"ours": trained(long_convolution, leaves)}
        theirs = {"published operator": trained(published.long_convolution, leaves)}
        compare("long_conv", f"{batch} x {channels} channels x {length:,}", ours, theirs, 3 if is_quick else 7)


if __name__ == "__main__":
    main()
