"""RMSNorm against the formula in float64 and against the classes of transformers that it replaces."""

from __future__ import annotations

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mamba.modeling_mamba import MambaRMSNorm

from ehrctx.models.model import build_model
from ehrctx.models.ops.rms_norm import RMSNorm, rms_norm
from ehrctx.study import ModelId

torch.set_num_threads(1)

EPS = 1e-5
SHAPES = pytest.mark.parametrize("shape", [(128,), (1, 1, 5), (3, 7, 128), (2, 33, 768)])


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """x, weight, and the gradient of the output; rows of different sizes."""
    generator = torch.Generator().manual_seed(len(shape) * shape[-1])
    x = torch.randn(*shape, generator=generator)
    if x.ndim > 1:
        x *= torch.logspace(-1, 1, shape[-2]).unsqueeze(1)
    weight = 1 + 0.3 * torch.randn(shape[-1], generator=generator)
    return x.to(dtype), weight.to(dtype), torch.randn(*shape, generator=generator).to(dtype)


def by_formula(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()


def outcome(operator, x: torch.Tensor, weight: torch.Tensor, direction: torch.Tensor) -> list[torch.Tensor]:
    """The output, and the gradients of both inputs."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = operator(x, weight)
    return [y.detach(), *torch.autograd.grad(y, (x, weight), direction.to(y.dtype))]


def close(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> None:
    """Within `tolerance` of each one's largest value."""
    for ours, theirs in zip(found, expected, strict=True):
        assert float((ours.double() - theirs.double()).abs().max()) < tolerance * float(theirs.abs().max())


@SHAPES
def test_output_and_gradients_are_those_of_float64(shape):
    given = inputs(shape)
    expected = outcome(by_formula, *(t.double() for t in given))
    close(outcome(lambda x, w: rms_norm(x, w, EPS), *given), expected, 1e-5)


def test_rows_of_zeros_are_not_divided_by_zero():
    _, weight, direction = inputs((2, 16))
    y, grad_x, grad_weight = outcome(lambda x, w: rms_norm(x, w, EPS), torch.zeros(2, 16), weight, direction)
    assert not y.any()
    assert not grad_weight.any()
    torch.testing.assert_close(grad_x, weight * direction / EPS**0.5)


def test_it_is_exact_in_float64():
    x, weight, _ = (t.double().requires_grad_() for t in inputs((2, 3, 8)))
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, EPS), (x, weight))


@SHAPES
@pytest.mark.parametrize("theirs", [LlamaRMSNorm, MambaRMSNorm])
def test_it_equals_the_class_that_it_replaces(shape, theirs):
    x, weight, direction = inputs(shape)
    library = theirs(shape[-1], eps=EPS)
    library.weight = torch.nn.Parameter(weight)
    ours = RMSNorm(library)
    assert ours.weight is library.weight
    assert ours.state_dict().keys() == library.state_dict().keys()
    found, expected = (
        outcome(lambda x, w, norm=norm: torch.func.functional_call(norm, {"weight": w}, (x,)), x, weight, direction)
        for norm in (ours, library)
    )
    close(found, expected, 2e-6)


@pytest.mark.parametrize("theirs", [torch.bfloat16, torch.float32])
def test_bfloat16_is_rounded_once_at_the_end(theirs):
    """Sums of squares in bfloat16 would lose a digit; transformers rounds the normalised values, too."""
    x, weight, direction = inputs((4, 64, 768), torch.bfloat16)
    found = outcome(lambda x, w: rms_norm(x, w, EPS), x, weight.to(theirs), direction)
    assert [t.dtype for t in found] == [theirs, torch.bfloat16, theirs]
    expected = outcome(by_formula, *(t.double() for t in (x, weight, direction)))
    for ours, exact in zip(found, expected, strict=True):
        rounding = torch.finfo(ours.dtype).eps / 2 + 1e-5
        torch.testing.assert_close(ours.double(), exact, rtol=rounding, atol=1e-5 * float(exact.abs().max()))


def test_rows_need_not_lie_one_after_another():
    x, weight, direction = inputs((6, 5, 16))
    turned = [t.transpose(0, 1) for t in (x, direction)]
    found = outcome(lambda x, w: rms_norm(x, w, EPS), turned[0], weight, turned[1])
    expected = outcome(lambda x, w: rms_norm(x, w, EPS), turned[0].contiguous(), weight, turned[1].contiguous())
    close(found, expected, 1e-6)


def test_it_keeps_its_input_and_one_number_per_row():
    x, weight, _ = inputs((3, 40, 128))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        rms_norm(x.requires_grad_(), weight.requires_grad_(), EPS)
    assert sorted(kept) == [3 * 40, 128, 3 * 40 * 128]


@pytest.mark.parametrize(("arch", "norms"), [("llama", 2 * 4 + 1), ("mamba", 4 + 1)])
def test_every_norm_of_a_model_is_ours(arch, norms):
    model = build_model(ModelId.parse(f"{arch}-tiny-16"), 20, seed=0)
    names = [type(module).__name__ for module in model.modules() if "RMSNorm" in type(module).__name__]
    assert names == ["RMSNorm"] * norms
