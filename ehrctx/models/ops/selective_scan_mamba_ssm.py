"""mamba-ssm's CUDA kernel of the selective scan, behind our signature; `selective_scan.py` says what is computed.

Importing `mamba_ssm` proves nothing: from 2.3.2 on its Mamba-1 kernel is left out of the build unless it is asked for
(`MAMBA_KEEP_CUDA_BUILD=TRUE`). Here the compiled module itself is imported.
"""

from __future__ import annotations

import selective_scan_cuda  # noqa: F401 (the kernel: ImportError where it was not built)
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
from torch import Tensor


def selective_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """As `ehrctx.models.ops.selective_scan.selective_scan`, for CUDA tensors."""
    u, delta, b, c = (x.float().transpose(1, 2).contiguous() for x in (u, delta, b, c))  # channels before time
    return selective_scan_fn(u, delta, a.float(), b, c, d.float()).transpose(1, 2)
