"""RMSNorm, forward and backward: ours against transformers' LlamaRMSNorm and torch's `F.rms_norm`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from measure import compare, options, trained
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from ehrctx.models.ops.rms_norm import rms_norm

EPS = 1e-5


def of_transformers(x: Tensor, weight: Tensor) -> Tensor:
    return torch.func.functional_call(LlamaRMSNorm(len(weight), EPS), {"weight": weight}, (x,))


def of_torch(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, EPS)


def ours(x: Tensor, weight: Tensor) -> Tensor:
    return rms_norm(x, weight, EPS)


def main() -> None:
    is_quick, device = options(__doc__)
    baselines = {"transformers' LlamaRMSNorm": of_transformers, "F.rms_norm": of_torch}
    cases = [(4, 4_096, 768)] if device == "cuda" else [(8, 512, 128), (1, 4_096, 768)]
    for batch, length, width in cases + ([] if is_quick else [(1, 16_384, 768)]):
        generator = torch.Generator().manual_seed(0)
        leaves = [
            torch.randn(*shape, generator=generator).to(device).requires_grad_()
            for shape in ((batch, length, width), (width,))
        ]
        theirs = {name: trained(norm, leaves) for name, norm in baselines.items()}
        case = f"{batch} x {length:,} x {width}"
        compare("rms_norm", case, {"ours": trained(ours, leaves)}, theirs, 11 if is_quick else 31)


if __name__ == "__main__":
    main()
