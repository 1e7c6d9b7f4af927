"""Linear layers whose float32 products oneDNN computes on the CPU, where it does so without loss of precision.

torch gives them to MKL, which reaches half of what AMD's newest cores can do. It gives them to oneDNN when allowed to
round the factors to bfloat16: without units for bfloat16 matrices (AMX), oneDNN then computes in float32 all the
same. Whether it does is tried once. The permission holds for the products here alone, and not for torch's fused
attention, whose many small products oneDNN slows down.

oneDNN compiles kernels for each shape, 0.5 to 1.7 MiB a product. torch and oneDNN each keep those of the last 1,024
products, though batches of timelines rarely have a shape again: 1 GiB and more. Both read from the environment, at the
first product, how many they keep; torch offers no other way to say so. 64 serve the last four shapes of a batch (15
each); compiling the others again takes 5 ms a batch, 1 to 2 % of a step at most (docs/performance.md).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

_log = logging.getLogger(__name__)
_ROUNDING = 1e-5  # of the largest value; bfloat16 has 4e-3
KERNEL_CACHES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")  # torch's, and oneDNN's own
KERNELS_KEPT = 64

for _name in KERNEL_CACHES:
    os.environ.setdefault(_name, str(KERNELS_KEPT))


class _Permission:
    """To round to bfloat16: the process's, so that threads share it, and the last to leave takes it back."""

    def __init__(self) -> None:
        self.lock, self.holders, self.before = threading.Lock(), 0, "none"

    @contextmanager
    def __call__(self) -> Iterator[None]:
        matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        with self.lock:
            if not self.holders:
                self.before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
            self.holders += 1
        try:
            yield
        finally:
            with self.lock:
                self.holders -= 1
                if not self.holders:
                    matmul.fp32_precision = self.before


_bfloat16_allowed = _Permission()


def loses_nothing() -> bool:
    """Whether a float32 product on this CPU stays one when bfloat16 is allowed."""
    generator = torch.Generator("cpu").manual_seed(0)
    a, b = (torch.randn(512, 512, generator=generator, device="cpu", dtype=torch.float32) for _ in range(2))
    exact = a.double() @ b.double()
    with _bfloat16_allowed(), torch.autocast("cpu", enabled=False):
        found = a @ b
    return float((found - exact).abs().max()) <= _ROUNDING * float(exact.abs().max())


@cache
def onednn_is_exact() -> bool:
    """Whether torch can be asked for oneDNN's products (2.9 or newer, with AVX-512), and they lose nothing."""
    can_be_asked = hasattr(torch.backends.mkldnn, "matmul") and torch.backends.mkldnn.is_available()
    is_exact = can_be_asked and torch.backends.cpu.get_cpu_capability() == "AVX512" and loses_nothing()
    _log.info("Float32 products on the CPU by %s.", "oneDNN" if is_exact else "torch's own choice")
    return is_exact


@contextmanager
def onednn_products() -> Iterator[None]:
    """Float32 products inside are oneDNN's where these are exact; elsewhere, torch's own."""
    if onednn_is_exact():
        with _bfloat16_allowed():
            yield
    else:
        yield


class _Linear(torch.autograd.Function):
    """x [..., inputs]; weight [inputs, outputs] if `turned`, else [outputs, inputs]; bias [outputs] or None."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, turned: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.turned = turned
        rows, matrix = x.reshape(-1, x.shape[-1]), weight if turned else weight.t()
        with onednn_products():
            y = rows @ matrix if bias is None else torch.addmm(bias, rows, matrix)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        rows, grad_rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        grad_x = grad_weight = None
        with onednn_products():
            if wants_x:
                grad_x = (grad_rows @ (weight.t() if ctx.turned else weight)).view(x.shape)
            if wants_weight:
                grad_weight = rows.t() @ grad_rows if ctx.turned else grad_rows.t() @ rows
        return grad_x, grad_weight, grad_rows.sum(0) if wants_bias else None, None


def _is_ours(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


class Linear(nn.Module):
    """torch's `nn.Linear` and transformers' `Conv1D`, which keeps its weight the other way round (same parameters).

    What looks for those classes (adapters, quantisation) finds them in an exported model. Not for `torch.func`.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.weight: Any = layer.weight
        self.bias: Any = layer.bias
        self.turned = isinstance(layer, Conv1D)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., inputs] -> [..., outputs]."""
        if _is_ours(x, self.weight):
            return _Linear.apply(x, self.weight, self.bias, self.turned)
        return F.linear(x, self.weight.t() if self.turned else self.weight, self.bias)


def use_our_linear(network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    """Replaces the layers of exactly these kinds by ours, in place; the parameters are the same objects.

    Only where oneDNN is exact: elsewhere torch's own layers serve.
    """
    if not onednn_is_exact():
        return
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if type(layer) in kinds:
                setattr(parent, name, Linear(layer))
