"""Next-token loss, forward and backward on one thread: ours against the cross-entropy of all logits at once."""

from __future__ import annotations

import published
import torch
from measure import line, medians, peak_mib, quick, trained

from ehrctx.models.ops.token_loss import token_loss


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
        ours, theirs = trained(token_loss, leaves, targets), trained(published.token_loss, leaves, targets)
        is_large = n * vocabulary > 10**8
        repeats = 1 if is_large else 5
        took = medians({"ours": ours, "theirs": theirs}, repeats, warm_up=not is_large)
        line(
            "token_loss", f"{n:,} tokens x {vocabulary:,}, width {width}", "ms", 1e3 * took["ours"],
            1e3 * took["theirs"], "all logits at once", repeats, more_is_better=False,
            ours_peak_mib=peak_mib(ours), baseline_peak_mib=peak_mib(theirs),
        )  # fmt: skip


if __name__ == "__main__":
    main()
