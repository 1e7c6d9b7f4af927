"""The selective scan's Triton kernels, on CPU in Triton's interpreter, against a float64 loop over time.

Triton decides at its first import whether it interprets, and stays so for the whole process: the interpreter runs in a
process of its own, for which this file is also the script (`python <this file> interpret|compile <folder>`).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scan_by_hand import NAMES, reference
from torch import Tensor

from ehrctx.models.ops import selective_scan as dispatch

MODULE = "ehrctx.models.ops.selective_scan_triton"
CANNOT_IMPORT = 77


class Case(NamedTuple):
    batch: int
    length: int
    channels: int
    states: int
    scale: float = 0.1
    dtype: torch.dtype = torch.float32
    # Chunks of 2 steps, blocks of 4 channels: many of them in a short time.
    small: bool = False


CASES = {
    "one step": Case(1, 1, 3, 1),
    "part of a chunk": Case(1, 7, 3, 5),
    "a chunk less one": Case(1, 15, 3, 5),
    "a chunk": Case(3, 16, 3, 5),
    "a chunk and one": Case(1, 17, 3, 16),
    "several chunks and blocks": Case(1, 53, 35, 5),
    "large steps": Case(1, 37, 3, 16, scale=50.0),
    "small steps": Case(1, 20, 3, 1, scale=1e-4),
    "many chunks joined": Case(3, 41, 7, 5, small=True),
    "many chunks, large steps": Case(1, 41, 7, 1, scale=50.0, small=True),
    "bfloat16": Case(1, 17, 20, 5, dtype=torch.bfloat16),
}


def inputs(case: Case) -> list[Tensor]:
    """As in the model, where activations may be in half precision and the parameters a and d are not."""
    generator = torch.Generator().manual_seed(case.length * 1000 + case.channels)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    delta = case.scale * torch.rand(case.batch, case.length, case.channels, generator=generator)
    a = -torch.arange(1.0, case.states + 1).repeat(case.channels, 1)
    b, c = (normal(case.batch, case.length, case.states).to(case.dtype) for _ in range(2))
    u = normal(case.batch, case.length, case.channels).to(case.dtype)
    return [u, delta, a, b, c, normal(case.channels)]


def output_and_gradients(scan: Callable[..., Tensor], leaves: list[Tensor]) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in leaves]
    y = scan(*leaves)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.device)
    (y * weights).sum().backward()
    assert all(x.grad is not None and x.grad.dtype == x.dtype for x in leaves)
    return [y.detach(), *(x.grad for x in leaves if x.grad is not None)]


def interpret(folder: Path) -> None:
    ours = importlib.import_module(MODULE)
    torch.set_num_threads(1)
    results = {}

    def keep(name: str, kind: str, tensors: list[Tensor]) -> None:
        results.update({f"{name}/{kind}/{i}": x.detach().double().numpy() for i, x in enumerate(tensors)})

    sizes = {name: getattr(ours, name) for name in ("CHUNK", "BLOCK", "BLOCK_GRADIENTS", "JOINED")}
    for name, case in CASES.items():
        vars(ours).update({"CHUNK": 2, "BLOCK": 4, "BLOCK_GRADIENTS": 2, "JOINED": 3} if case.small else sizes)
        leaves = inputs(case)
        keep(name, "ours", output_and_gradients(ours.selective_scan, leaves))
        keep(name, "reference", output_and_gradients(reference, [x.double() for x in leaves]))
    vars(ours).update(sizes)

    leaves = inputs(CASES["a chunk and one"])
    keep("again", "ours", output_and_gradients(ours.selective_scan, leaves))
    with torch.no_grad():
        y = ours.selective_scan(*(x.requires_grad_() for x in leaves))
    assert not y.requires_grad
    keep("no gradient", "ours", [y, ours.selective_scan(*(x.detach() for x in leaves))])
    strided = [x.detach().transpose(0, 1).contiguous().transpose(0, 1) for x in leaves[:5]]
    keep("strided", "ours", [ours.selective_scan(*strided, leaves[5].detach())])
    for name in NAMES:
        leaves = inputs(Case(2, 18, 2, 2))
        leaves[NAMES.index(name)].view(-1)[0] = float("nan")
        keep("nan", name, [ours.selective_scan(*leaves)])
    np.savez(folder / "results.npz", **results)


def compile_for_cuda() -> None:
    """What Triton's interpreter accepts its compiler may not; needs no GPU. Prints each kernel and its bytes."""
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    ours = importlib.import_module(MODULE)
    # Chunks of 4, since every step is unrolled: 16 take 8 s.
    sizes = {"channels": 70, "states": 5, "CHUNK": 4, "STATES": 8, "BLOCK": 16, "JOINED": 4}
    kernels: list[tuple[Any, dict[str, Any]]] = [(ours._outputs, {}), (ours._gradients, {})]
    kernels += [(kernel, {"REVERSE": reverse}) for kernel in (ours._alone, ours._join) for reverse in (False, True)]
    for kernel, direction in kernels:
        constants = {name: value for name, value in (sizes | direction).items() if name in kernel.arg_names}
        kinds = dict.fromkeys(("u", "b", "c", "grad_u"), "*bf16") | dict.fromkeys(("length", "chunks"), "i32")
        kinds |= dict.fromkeys(constants, "constexpr")
        signature = {name: kinds.get(name, "*fp32") for name in kernel.arg_names}
        compiled = compile_kernel(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 80, 32))
        print(kernel.__name__, *direction.values(), len(compiled.asm["cubin"]))


def script(mode: str, folder: Path, interpreting: bool) -> str:
    """Runs this file and returns what it prints; skips the test if Triton cannot be imported there."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("the kernels need Triton, which is not installed (on Linux, the extra `dev` brings it)")
    environment = os.environ | {"TRITON_INTERPRET": str(int(interpreting)), "TRITON_CACHE_DIR": str(folder)}
    words = [sys.executable, __file__, mode, str(folder)]
    done = subprocess.run(words, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode == CANNOT_IMPORT:
        pytest.skip(f"Triton is installed, but the kernels cannot be imported with it: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    folder = tmp_path_factory.mktemp("triton")
    script("interpret", folder, interpreting=True)
    with np.load(folder / "results.npz") as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def errors(actual: list[Tensor], expected: list[Tensor]) -> dict[str, float]:
    """Largest difference of each tensor, relative to its largest value."""
    assert all(torch.isfinite(x).all() for x in actual)
    pairs = zip(("y", *NAMES), actual, expected, strict=True)
    return {name: float((x - y).abs().max() / y.abs().max().clamp_min(1e-30)) for name, x, y in pairs}


@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients_equal_the_float64_loop(results: dict[str, Tensor], name: str) -> None:
    ours, loop = ([results[f"{name}/{kind}/{i}"] for i in range(1 + len(NAMES))] for kind in ("ours", "reference"))
    rounded = {"u", "b", "c"} if CASES[name].dtype == torch.bfloat16 else set()
    for tensor, error in errors(ours, loop).items():
        assert error <= (2**-8 if tensor in rounded else 1e-5), tensor


def test_two_runs_give_the_same_bits(results: dict[str, Tensor]) -> None:
    for i in range(1 + len(NAMES)):
        assert torch.equal(results[f"again/ours/{i}"], results[f"a chunk and one/ours/{i}"])


def test_without_gradients_and_from_strided_tensors_the_output_is_the_same(results: dict[str, Tensor]) -> None:
    expected = results["a chunk and one/ours/0"]
    for name in ("no gradient/ours/0", "no gradient/ours/1", "strided/ours/0"):
        assert torch.equal(results[name], expected), name


def test_nan_is_not_hidden(results: dict[str, Tensor]) -> None:
    for name in NAMES:
        y = results[f"nan/{name}/0"]
        assert torch.isnan(y[0]).any(), name
        assert torch.isfinite(y[1]).any(), name


def test_kernels_compile_for_cuda(tmp_path: Path) -> None:
    lines = [line.split() for line in script("compile", tmp_path, interpreting=False).splitlines()]
    both = [[name, reverse] for name in ("_alone", "_join") for reverse in ("False", "True")]
    assert [words[:-1] for words in lines] == [["_outputs"], ["_gradients"], *both]
    assert all(int(words[-1]) > 1_000 for words in lines), "bytes of code for sm_80"


def test_on_a_gpu_equal_to_plain_torch() -> None:
    if not torch.cuda.is_available():
        pytest.skip("compiled kernels run on a CUDA device alone, and none is here; the other tests interpret them")
    ours = pytest.importorskip(MODULE, reason="the kernels need Triton, which cannot be imported", exc_type=ImportError)
    leaves = [x.cuda() for x in inputs(Case(2, 2048, 256, 16))]
    runs = [output_and_gradients(ours.selective_scan, leaves) for _ in range(2)]
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))
    plain = output_and_gradients(lambda *x: dispatch.selective_scan(*x, backend="torch"), leaves)
    # both are rounded to float32
    assert max(errors(runs[0], plain).values()) <= 5e-5


if __name__ == "__main__":
    try:
        importlib.import_module(MODULE)
    except ImportError as error:
        print(error, file=sys.stderr)
        sys.exit(CANNOT_IMPORT)
    if sys.argv[1] == "interpret":
        interpret(Path(sys.argv[2]))
    else:
        compile_for_cuda()
