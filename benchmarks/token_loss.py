"""Next-token loss, forward and backward on one thread: ours against the cross-entropy of all logits at once.

And against torch's own chunked `linear_cross_entropy`, where it is (torch >= 2.13).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import published
import torch
import torch.nn.functional as F
from measure import line, medians, peak_mib, quick, trained

from ehrctx.models.ops.token_loss import token_loss


def of_torch() -> Any:
    """torch's loss in chunks of 1,024 positions, summed; None where torch has none."""
    options = getattr(torch.nn, "LinearCrossEntropyOptions", None)
    if options is None:
        return None
    return partial(F.linear_cross_entropy, reduction="sum", options=options(batch_chunk_size=1024))


def main() -> None:
    is_quick = quick(__doc__)
    torch.set_num_threads(1)
    for n, width, vocabulary in [(4_096, 128, 4_096)] + (
        [] if is_quick else [(4_096, 768, 39_818), (16_384, 768, 39_818)]
    ):
        generator = torch.Generator().manual_seed(0)
        leaves = [
            torch.randn(n, width, generator=generator).requires_grad_(),
            (0.02 * torch.randn(vocabulary, width, generator=generator)).requires_grad_(),
        ]
        targets = torch.randint(vocabulary, (n,), generator=generator)
        variants = {"ours": trained(token_loss, leaves, targets)}
        variants["all logits at once"] = trained(published.token_loss, leaves, targets)
        if (chunked := of_torch()) is not None:
            variants["torch's linear_cross_entropy"] = trained(chunked, leaves, targets)
        is_large = n * vocabulary > 10**8
        repeats = 1 if is_large else 5
        took = medians(variants, repeats, warm_up=not is_large)
        peaks = {name: peak_mib(run) for name, run in variants.items()}
        for name in list(variants)[1:]:
            line(
                "token_loss", f"{n:,} tokens x {vocabulary:,}, width {width}", "ms", 1e3 * took["ours"],
                1e3 * took[name], name, repeats, more_is_better=False,
                ours_peak_mib=peaks["ours"], baseline_peak_mib=peaks[name],
            )  # fmt: skip


if __name__ == "__main__":
    main()
