"""Next-token loss, forward and backward: ours against the cross-entropy of all logits at once.

And against torch's own chunked `linear_cross_entropy`, where it is (torch >= 2.13).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import published
import torch
import torch.nn.functional as F
from measure import compare, options, trained

from ehrctx.models.ops.token_loss import token_loss


def of_torch() -> Any:
    """torch's loss in chunks of 1,024 positions, summed; None where torch has none."""
    options = getattr(torch.nn, "LinearCrossEntropyOptions", None)
    if options is None:
        return None
    return partial(F.linear_cross_entropy, reduction="sum", options=options(batch_chunk_size=1024))


def main() -> None:
    is_quick, device = options(__doc__)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32  # that of the states there
    for n, width, vocabulary in [(4_096, 128, 4_096)] + (
        [] if is_quick else [(4_096, 768, 39_818), (16_384, 768, 39_818)]
    ):
        generator = torch.Generator().manual_seed(0)
        leaves = [
            torch.randn(n, width, generator=generator).to(device, dtype).requires_grad_(),
            (0.02 * torch.randn(vocabulary, width, generator=generator)).to(device, dtype).requires_grad_(),
        ]
        targets = torch.randint(vocabulary, (n,), generator=generator).to(device)
        baselines = {"all logits at once": trained(published.token_loss, leaves, targets)}
        if (chunked := of_torch()) is not None:
            baselines["torch's linear_cross_entropy"] = trained(chunked, leaves, targets)
        ours = {"ours": trained(token_loss, leaves, targets)}
        takes_long = device == "cpu" and n * vocabulary > 10**8
        case = f"{n:,} tokens x {vocabulary:,}, width {width}"
        compare("token_loss", case, ours, baselines, 1 if takes_long else 5, warm_up=not takes_long)


if __name__ == "__main__":
    main()
