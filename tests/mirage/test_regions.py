"""Regions of a block: one operator each, equal to its plain form, that keeps its inputs alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from mirage import kernels
from mirage.kernels import reference
from mirage.kernels.cpu import fused

FP64 = torch.float64


def normal(*size: int, dtype: torch.dtype = FP64) -> Tensor:
    return torch.randn(*size, dtype=dtype, requires_grad=True)


def part(*size: int, dtype: torch.dtype = FP64) -> Tensor:
    """A slice of a wider map, as the mixer passes them."""
    *rest, channels = size
    return torch.randn(*rest, channels + 2, dtype=dtype)[..., 1:-1].detach().requires_grad_()


def arguments(name: str, dtype: torch.dtype = FP64, c: int = 3) -> list[Any]:
    torch.manual_seed(0)

    def weight(*size: int) -> Tensor:
        return normal(*size, dtype=dtype)

    def x() -> Tensor:
        return part(2, 3, 4, c, dtype=dtype)

    build: dict[str, Callable[[], list[Any]]] = {
        "feed_forward": lambda: [x(), weight(c), weight(c), weight(8, c), weight(8, 3, 3), weight(c, 4)],
        "attention_input": lambda: [x(), weight(3 * c, c), weight(3 * c, 3, 3)],
        "gated_unit": lambda: [x(), weight(10, c), weight(10), weight(2, 3, 7, 7), weight(c, 5)],
        "channel_mlp": lambda: [x(), weight(6, c), weight(c, 6)],
        "fused_product": lambda: [[x(), x(), x()], weight(3), weight(5, 3 * c)],
        "fused_product of two": lambda: [[x(), x()], weight(2), weight(5, 2 * c)],
    }
    return build[name]()


NAMES = [
    "feed_forward",
    "attention_input",
    "gated_unit",
    "channel_mlp",
    "fused_product",
    "fused_product of two",
]


def of(module: Any, name: str) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(module, name.split()[0])
    return found


def flat(values: Any) -> list[Tensor]:
    nested = [flat(value) if isinstance(value, list | tuple) else [value] for value in values]
    return [tensor for group in nested for tensor in group]


def run(function: Callable[..., Any], inputs: list[Any]) -> list[Tensor]:
    """Outputs, then gradients of a sum in which every number counts differently."""
    outputs = flat([function(*inputs)])
    total = sum((out * torch.arange(1, out.numel() + 1).view_as(out)).sum() for out in outputs)
    assert isinstance(total, Tensor)
    total.backward()  # type: ignore[no-untyped-call]
    return [out.detach() for out in outputs] + [x.grad for x in flat(inputs)]


@pytest.mark.parametrize("group_bytes", [1, 2**24])
@pytest.mark.parametrize("name", NAMES)
def test_regions_equal_their_reference_in_value_and_gradient(
    name: str, group_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "GROUP_BYTES", group_bytes)
    ours, plain = (run(of(module, name), arguments(name)) for module in (fused, reference))
    for found, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    inputs = arguments(name, c=2)
    if not isinstance(inputs[0], list):
        assert gradcheck(of(fused, name), inputs)
        return
    branches, rest = inputs[0], inputs[1:]
    count = len(branches)
    assert gradcheck(lambda *x: fused.fused_product(list(x[:count]), *x[count:]), (*branches, *rest))


@pytest.mark.parametrize("name", NAMES)
def test_operators_obey_the_rules_of_torch_library(name: str) -> None:
    torch.library.opcheck(getattr(torch.ops.mirage, name.split()[0]).default, arguments(name, torch.float32))


@pytest.mark.parametrize("name", NAMES)
def test_under_autocast_they_work_in_bf16_and_are_near_fp32(name: str) -> None:
    inputs = arguments(name, torch.float32, c=8)
    exact = run(of(kernels, name), inputs)
    inputs = arguments(name, torch.float32, c=8)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = flat([of(kernels, name)(*inputs)])
        rough = run(of(kernels, name), inputs)
    assert [out.dtype for out in outputs] == [
        torch.float32 if out.shape[-1] == 2 * 8 and out.dim() == 3 else torch.bfloat16 for out in outputs
    ]
    for found, expected in zip(rough, exact, strict=True):
        assert (found.float() - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_kept_but_the_inputs(name: str) -> None:
    inputs = arguments(name, torch.float32)
    given = {tensor.untyped_storage().data_ptr() for tensor in flat(inputs)}
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x), x)[1], lambda x: x):
        of(kernels, name)(*inputs)
    assert kept
    assert {x.untyped_storage().data_ptr() for x in kept} <= given
