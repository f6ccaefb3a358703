import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from mirage import kernels
from mirage.kernels import reference
from mirage.kernels.cpu import operators

SIZES = [(1, 1, 1, 1), (2, 5, 4, 3), (3, 9, 8, 2)]


def maps(size: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    """A slice of a wider map, as the model passes them."""
    *rest, channels = size
    return torch.randn(*rest, channels + 2, dtype=dtype)[..., 1:-1].detach().requires_grad_()


def arguments(name: str, size: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    batch, _, _, channels = size
    shapes = {"depthwise": [(channels, 3, 3)], "dynamic_depthwise": [(batch, channels, 7, 7)], "moments": []}
    extra = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes[name]]
    return maps(size, dtype), *extra


NAMES = ["depthwise", "dynamic_depthwise", "moments"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_operators_equal_their_reference_in_value_and_gradient(name: str, size: tuple[int, ...]) -> None:
    found = []
    for module in (operators, reference):
        inputs = arguments(name, size)
        out = getattr(module, name)(*inputs)
        out = torch.cat([part.flatten() for part in (out if isinstance(out, tuple) else (out,))])
        (out * torch.arange(1, out.numel() + 1)).sum().backward()
        found.append([out.detach(), *(x.grad for x in inputs)])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    assert gradcheck(getattr(operators, name), arguments(name, (2, 3, 4, 2)))


@pytest.mark.parametrize("name", NAMES)
def test_operators_obey_the_rules_of_torch_library(name: str) -> None:
    operator = getattr(torch.ops.mirage, name).default
    torch.library.opcheck(operator, arguments(name, (2, 3, 4, 2), torch.float32))


def test_depthwise_is_a_correlation_with_zero_padding() -> None:
    x = torch.zeros(1, 3, 3, 1)
    x[0, 1, 1] = 1
    weight = torch.arange(9.0).view(1, 3, 3)
    assert torch.equal(kernels.depthwise(x, weight)[0, ..., 0], weight[0].flip(0, 1))


def test_each_image_gets_its_own_kernels() -> None:
    x, weights = arguments("dynamic_depthwise", (3, 6, 5, 4))
    alone = [kernels.depthwise(x[i : i + 1], weights[i]) for i in range(3)]
    torch.testing.assert_close(kernels.dynamic_depthwise(x, weights), torch.cat(alone))


def test_outputs_are_channels_last() -> None:
    for name in ("depthwise", "dynamic_depthwise"):
        assert getattr(kernels, name)(*arguments(name, (2, 5, 4, 3))).is_contiguous()


def test_moments_do_not_cancel_far_from_zero() -> None:
    x = 1000 + torch.randn(2, 32, 32, 4, dtype=torch.float64)
    _, exact = reference.moments(x)
    _, found = kernels.moments(x.float())
    assert ((found - exact) / exact).abs().max() < 1e-4


def test_the_gram_matrix_is_fp32_under_autocast() -> None:
    x = torch.randn(2, 4096, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert kernels.gram(x).dtype == torch.float32
        assert kernels.gram(x.bfloat16()).dtype == torch.float32


def test_restoring_does_not_wait_for_the_compiler_to_be_imported() -> None:
    program = """
import sys, torch
from mirage import MIRAGE, ModelConfig, restore
restore(MIRAGE(ModelConfig(dim=6, blocks=(1, 1, 1, 1), heads=(1, 1, 1, 1))), torch.rand(3, 16, 16))
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
