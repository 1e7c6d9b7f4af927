"""Both backends of the selective scan against a float64 loop over time, whose gradients autograd computes."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator

import pytest
import torch
from scan_by_hand import NAMES, reference
from torch import Tensor

import ehrctx.models.ops.selective_scan as dispatch
from ehrctx.models.ops.selective_scan import backend_for, selective_scan

BACKENDS = ("numba", "torch")  # those of a CPU
NUMBA_MODULE = "ehrctx.models.ops.selective_scan_numba"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def inputs(length: int, channels: int, scale: float = 0.1, batch: int = 2, state: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length * 1000 + channels)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    delta = scale * torch.rand(batch, length, channels, generator=generator)
    a = -torch.arange(1.0, state + 1).repeat(channels, 1)
    b, c = normal(batch, length, state), normal(batch, length, state)
    return [normal(batch, length, channels), delta, a, b, c, normal(channels)]


def output_and_gradients(scan_inputs: list[Tensor], backend: str | None) -> list[Tensor]:
    """y and the six gradients of a random projection of y; backend None: the reference, in float64."""
    leaves = [(x.double() if backend is None else x).clone().requires_grad_() for x in scan_inputs]
    y = reference(*leaves) if backend is None else selective_scan(*leaves, backend=backend)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    (y * weights).sum().backward()
    return [y.detach(), *(x.grad for x in leaves if x.grad is not None)]


def assert_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert len(actual) == len(expected) == 1 + len(NAMES)
    for name, ours, theirs in zip(("y", *NAMES), actual, expected, strict=True):
        assert torch.isfinite(ours).all(), name
        error = (ours.double() - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30)
        assert error <= 1e-5, f"{name}: {error:.1e}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("length", "channels"), [(1, 3), (5, 70), (33, 70), (70, 200)])
def test_output_and_gradients_equal_the_float64_loop(backend: str, length: int, channels: int) -> None:
    case = inputs(length, channels)
    assert_close(output_and_gradients(case, backend), output_and_gradients(case, None))


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_a_batch_of_many_rows_goes_in_parts(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """In plain torch, the states of so many rows at a time are held; seven rows, over the border of a chunk."""
    case = inputs(dispatch.CHUNK + 3, 4, batch=7)
    monkeypatch.setattr(dispatch, "_CELLS", rows * dispatch.CHUNK * 4 * 5)
    assert_close(output_and_gradients(case, "torch"), output_and_gradients(case, None))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1e-4, 50.0])
def test_extreme_step_sizes(backend: str, scale: float) -> None:
    case = inputs(70, 6, scale)
    assert_close(output_and_gradients(case, backend), output_and_gradients(case, None))


def test_constant_large_steps_forget_everything() -> None:
    case = inputs(33, 6)
    case[1] = torch.full_like(case[1], 50.0)
    for backend in BACKENDS:
        assert all(torch.isfinite(x).all() for x in output_and_gradients(case, backend))


def test_backends_agree_on_strided_and_half_precision_inputs() -> None:
    u, delta, a, b, c, d = inputs(33, 70)
    strided = [
        u.transpose(1, 2).contiguous().transpose(1, 2),
        delta.bfloat16(),
        a,
        *torch.cat([b, c], 2).split(5, 2),
        d,
    ]
    numba_y, torch_y = (selective_scan(*strided, backend=x) for x in ("numba", "torch"))
    assert numba_y.dtype == torch_y.dtype == torch.float32
    torch.testing.assert_close(numba_y, torch_y, rtol=1e-5, atol=1e-5)


def test_numba_does_not_depend_on_the_number_of_threads() -> None:
    case = inputs(70, 300, batch=3)
    one = output_and_gradients(case, "numba")
    torch.set_num_threads(2)
    two = output_and_gradients(case, "numba")
    assert torch.get_num_threads() == 2
    assert all(torch.equal(x, y) for x, y in zip(one, two, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_is_not_hidden(backend: str) -> None:
    for index, name in enumerate(NAMES):
        case = inputs(20, 4)
        case[index].view(-1)[0] = float("nan")
        y, *_ = output_and_gradients(case, backend)
        assert torch.isnan(y[0]).any(), name
        assert torch.isfinite(y[1]).any(), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_gradients_the_output_is_the_same_and_has_no_graph(backend: str) -> None:
    case = [x.requires_grad_() for x in inputs(33, 70)]
    with torch.no_grad():
        y = selective_scan(*case, backend=backend)
    assert y.grad_fn is None
    assert torch.equal(y, selective_scan(*case, backend=backend))


def test_exponential_of_the_kernels() -> None:
    exponential = importlib.import_module(NUMBA_MODULE).exp_float32
    x = -torch.cat([torch.logspace(-8, 1, 500), torch.linspace(0, 87.3, 5000)])
    actual = torch.tensor([float(exponential(v)) for v in x.numpy()], dtype=torch.float64)
    assert (actual / x.double().exp() - 1).abs().max() <= 2e-7
    assert exponential(torch.tensor(-1e4).numpy()[()]) == 0


def test_unknown_backend_is_refused_with_the_known_names() -> None:
    with pytest.raises(ValueError, match=r"'cuda'.*mamba_ssm, triton, numba, torch"):
        selective_scan(*inputs(1, 3), backend="cuda")


@pytest.mark.parametrize("backend", ["mamba_ssm", "triton"])
def test_backends_of_another_device_are_refused(backend: str) -> None:
    with pytest.raises(ValueError, match=f"the {backend} backend runs on cuda only, not on cpu"):
        selective_scan(*inputs(1, 3), backend=backend)


@pytest.mark.parametrize(
    ("usable", "cpu", "cuda", "mps"),
    [
        (("mamba_ssm", "triton", "numba"), "numba", "mamba_ssm", "torch"),
        (("triton", "numba"), "numba", "triton", "torch"),
        ((), "torch", "torch", "torch"),
    ],
)
def test_the_best_usable_backend_serves_a_device(
    monkeypatch: pytest.MonkeyPatch, usable: tuple[str, ...], cpu: str, cuda: str, mps: str
) -> None:
    monkeypatch.setattr(dispatch, "_load", lambda backend: print if backend in (*usable, "torch") else None)
    assert [backend_for(torch.device(name)) for name in ("cpu", "cuda", "mps")] == [cpu, cuda, mps]


def test_mamba_ssm_is_known_by_its_compiled_kernel_and_called_in_its_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in of its signature: channels before time, as mamba_ssm.ops.selective_scan_interface has it."""

    def selective_scan_fn(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        assert all(x.is_contiguous() and x.dtype == torch.float32 for x in (u, delta, b, c))
        turned = [x.transpose(1, 2) for x in (u, delta)], [x.transpose(1, 2) for x in (b, c)]
        return reference(*turned[0], a, *turned[1], d).transpose(1, 2)

    name = "ehrctx.models.ops.selective_scan_mamba_ssm"
    interface = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = selective_scan_fn  # type: ignore[attr-defined]
    for module in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", None)  # mamba_ssm is there, its kernel is not
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *shape, device: ones(*shape))  # the launch that proves it, without CUDA
    dispatch._load.cache_clear()
    try:
        assert dispatch._load("mamba_ssm") is None
        dispatch._load.cache_clear()
        monkeypatch.setitem(sys.modules, "selective_scan_cuda", types.ModuleType("selective_scan_cuda"))
        scan = dispatch._load("mamba_ssm")
        assert scan is not None
        case = inputs(9, 6, state=4)
        torch.testing.assert_close(scan(*case), reference(*case))
    finally:
        dispatch._load.cache_clear()
        sys.modules.pop(name, None)


def test_without_numba_torch_takes_over(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, NUMBA_MODULE, raising=False)
    dispatch._load.cache_clear()
    dispatch._log_choice.cache_clear()
    try:
        case = inputs(5, 3)
        with caplog.at_level(logging.INFO):
            y = [selective_scan(*case) for _ in range(2)]
        assert torch.equal(y[0], selective_scan(*case, backend="torch"))
        assert [r.getMessage() for r in caplog.records].count("selective scan on cpu: torch backend") == 1
        with pytest.raises(RuntimeError, match="numba"):
            selective_scan(*case, backend="numba")
    finally:
        dispatch._load.cache_clear()
        dispatch._log_choice.cache_clear()


def test_freshly_compiled_and_cached_kernels_round_alike(tmp_path):
    # a resumed training runs from numba's cache what its first part may have compiled
    script = """
        import hashlib, torch
        from ehrctx.models.ops.selective_scan import selective_scan
        torch.set_num_threads(1)
        g = torch.Generator().manual_seed(0)
        u, delta = torch.randn(2, 33, 70, generator=g), torch.rand(2, 33, 70, generator=g)
        a, d = -torch.rand(70, 16, generator=g), torch.randn(70, generator=g)
        b, c = torch.randn(2, 33, 16, generator=g), torch.randn(2, 33, 16, generator=g)
        inputs = [x.requires_grad_() for x in (u, delta, a, b, c, d)]
        y = selective_scan(*inputs, backend="numba")
        y.square().sum().backward()
        parts = [y.detach(), *(x.grad for x in inputs)]
        print([hashlib.sha256(x.numpy().tobytes()).hexdigest() for x in parts])
    """
    words = [sys.executable, "-c", textwrap.dedent(script)]
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    runs = [subprocess.run(words, env=environment, capture_output=True, text=True, check=True) for _ in range(2)]
    assert any(tmp_path.rglob("*.nbc"))
    assert runs[0].stdout == runs[1].stdout
