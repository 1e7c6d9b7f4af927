"""Linear layers by oneDNN's products: the same layers, in float32, wherever they are used."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

from ehrctx.models.model import build_model
from ehrctx.models.ops import linear
from ehrctx.models.ops.linear import Linear, loses_nothing, onednn_products
from ehrctx.study import ARCHITECTURES, ModelId

torch.set_num_threads(1)

LAYERS = {
    "linear": lambda: nn.Linear(48, 80),
    "without bias": lambda: nn.Linear(48, 80, bias=False),
    "turned": lambda: Conv1D(80, 48),
    "one output": lambda: nn.Linear(48, 1),
}


CAN_BE_ASKED = pytest.mark.skipif(
    not hasattr(torch.backends.mkldnn, "matmul"), reason="torch 2.9 or newer can be asked for oneDNN's products"
)


@pytest.fixture
def our_layers(monkeypatch):
    """Our layers on any CPU, though it may not be asked for oneDNN's products or they may not be exact there."""
    if not linear.onednn_is_exact():
        monkeypatch.setattr(linear, "onednn_is_exact", lambda: True)
        monkeypatch.setattr(linear, "_bfloat16_allowed", nullcontext)


def layer_of(name: str) -> nn.Module:
    torch.manual_seed(3)
    layer = LAYERS[name]()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


def outcome(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The output, and the gradients of the input and all parameters."""
    x = x.clone().requires_grad_()
    y = layer(x)
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, (x, *layer.parameters()), direction)]


class Products(TorchDispatchMode):
    """The precision that each product of matrices is allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.allowed: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.allowed.append(torch.backends.mkldnn.matmul.fp32_precision)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", [(48,), (5, 48), (2, 3, 48), (0, 48)])
@pytest.mark.parametrize("name", LAYERS)
def test_output_and_gradients_are_those_of_float64(our_layers, name, shape):
    layer = layer_of(name)
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    found = outcome(Linear(layer), x)
    expected = outcome(layer.double(), x.double())
    assert len(found) == len(expected) == 2 + len(list(layer.parameters()))
    for ours, exact in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert ours.shape == exact.shape
        assert not exact.numel() or (ours - exact).abs().amax() <= 1e-5 * exact.abs().amax()


def test_what_needs_no_gradient_gets_none(our_layers):
    layer = Linear(layer_of("linear"))
    layer.weight.requires_grad_(False)
    layer(torch.ones(2, 48)).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(layer.bias.grad, torch.full((80,), 2.0))


@CAN_BE_ASKED
def test_bfloat16_is_allowed_to_no_other_product(monkeypatch):
    monkeypatch.setattr(linear, "onednn_is_exact", lambda: True)
    matmul = torch.backends.mkldnn.matmul
    before, layer = matmul.fp32_precision, Linear(layer_of("linear"))
    with Products() as products:
        y = layer(torch.ones(2, 48, requires_grad=True))
        torch.mm(torch.ones(2, 2), torch.ones(2, 2))
        y.sum().backward()
    assert products.allowed == ["bf16", before, "bf16", "bf16"]
    with pytest.raises(RuntimeError, match="shape"):
        layer(torch.ones(2, 47))
    assert matmul.fp32_precision == before != "bf16"


@CAN_BE_ASKED
def test_threads_that_come_and_go_leave_nothing_behind(monkeypatch):
    monkeypatch.setattr(linear, "onednn_is_exact", lambda: True)
    matmul = torch.backends.mkldnn.matmul
    before, inside = matmul.fp32_precision, []

    def work(_: int) -> None:
        for _ in range(200):
            with onednn_products():
                inside.append(matmul.fp32_precision)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert set(inside) == {"bf16"}
    assert matmul.fp32_precision == before


def test_a_compiler_gets_torch_s_own_layers(our_layers):
    layer = Linear(layer_of("turned"))
    x = torch.randn(3, 48)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))


@CAN_BE_ASKED
def test_a_cpu_that_would_round_is_found_out(monkeypatch):
    """As units for bfloat16 matrices do: factors of 8 bits, sums in float32."""
    product = torch.Tensor.__matmul__

    def rounding(a, b):
        allowed = torch.backends.mkldnn.matmul.fp32_precision == "bf16" and a.dtype == torch.float32
        return product(a.bfloat16().float(), b.bfloat16().float()) if allowed else product(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounding)
    assert not loses_nothing()
    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    monkeypatch.setattr(linear, "_bfloat16_allowed", torch.no_grad)
    assert loses_nothing()


@CAN_BE_ASKED
def test_where_it_is_tried_makes_no_difference():
    expected = loses_nothing()
    with torch.device("meta"), torch.autocast("cpu", dtype=torch.bfloat16):
        assert loses_nothing() == expected


def test_where_it_is_not_exact_all_is_as_it_was(monkeypatch):
    monkeypatch.setattr(linear, "onednn_is_exact", lambda: False)
    monkeypatch.setattr(linear, "_bfloat16_allowed", None)
    with onednn_products():
        pass
    body = build_model(ModelId.parse("llama-tiny-16"), 20, seed=0).network.base_model
    assert not any(isinstance(module, Linear) for module in body.modules())


@pytest.mark.parametrize("name", LAYERS)
def test_autocast_and_other_precisions_are_torch_s(our_layers, name):
    layer = layer_of(name)
    x = torch.randn(3, 48)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = Linear(layer)(x), layer(x)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)
    double = layer.double()
    torch.testing.assert_close(Linear(double)(x.double()), double(x.double()))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_layer_of_a_model_is_ours_and_its_weights_keep_their_names(our_layers, arch):
    model = build_model(ModelId.parse(f"{arch}-tiny-16"), 20, seed=0)
    body = model.network.base_model
    kinds = [type(module) for name, module in body.named_modules() if ".filter." not in name]
    assert kinds.count(Linear) >= 4 * 2
    assert not any(issubclass(kind, nn.Linear | Conv1D) for kind in kinds if kind is not Linear)
    theirs = model.network.__class__(model.network.config)
    assert {n: p.shape for n, p in model.network.named_parameters()} == {
        n: p.shape for n, p in theirs.named_parameters()
    }


MANY_SHAPES = """
import torch
from ehrctx.models.ops.linear import Linear

def resident_mib():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) / 1024

torch.set_num_threads(1)
layer = Linear(torch.nn.Linear(128, 384))

def step(rows):
    layer(torch.ones(rows, 128, requires_grad=True)).sum().backward()

for rows in range(1000, 1040):
    step(rows)
before = resident_mib()
for rows in range(1040, 1240):
    step(rows)
print(resident_mib() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc")
@pytest.mark.skipif(not linear.onednn_is_exact(), reason="torch's own products keep no kernel of each shape")
def test_products_of_many_shapes_do_not_fill_the_memory(repository):
    """Each new shape compiles kernels of 0.5 to 1.7 MiB a product: of 200 shapes, 1,000 MiB."""
    environment = {name: value for name, value in os.environ.items() if name not in linear.KERNEL_CACHES}
    found = subprocess.run(
        [sys.executable, "-c", MANY_SHAPES], cwd=repository, env=environment, capture_output=True, text=True, check=True
    )
    assert float(found.stdout) < 50


@pytest.mark.parametrize("name", linear.KERNEL_CACHES)
def test_a_capacity_that_the_user_chose_stays(name, repository):
    asks = f"import os, ehrctx.models.ops.linear; print(os.environ[{name!r}])"
    found = subprocess.run(
        [sys.executable, "-c", asks], cwd=repository, env=os.environ | {name: "7"}, capture_output=True, text=True
    )
    assert found.stdout.split() == ["7"]
