"""Inputs of every operator, and the comparison of a backend with the specification, for tests/gpu and tests/mirage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mirage.kernels import reference
from mirage.kernels.triton import operators

Function = Callable[..., Any]
Size = tuple[int, int, int, int]
"""(b, h, w, c)."""


def weight(*size: int) -> Tensor:
    """Return random weights that keep the variance of a matrix product at 1."""
    return torch.randn(size) / size[-1] ** 0.5


def filters(*size: int) -> Tensor:
    return torch.randn(size) / size[-1]


def sliced(*size: int) -> Tensor:
    """Return a slice of a wider map, as the model passes them."""
    return torch.randn(*size[:-1], size[-1] + 3)[..., 2:-1]


def _fusion_linear(b: int, h: int, w: int, c: int, count: int) -> list[Any]:
    branches = [torch.randn(b, h, w, c) for _ in range(count)]
    return [branches, torch.randn(count), weight(c + 3, count * c)]


INPUTS: dict[str, Callable[[int, int, int, int], list[Any]]] = {
    "depthwise": lambda b, h, w, c: [sliced(b, h, w, c), filters(c, 3, 3)],
    "dynamic_depthwise": lambda b, h, w, c: [sliced(b, h, w, c), filters(b, c, 7, 7)],
    "moments": lambda b, h, w, c: [sliced(b, h, w, c)],
    "gram": lambda b, h, w, c: [sliced(b, h * w, c)],
    "feed_forward": lambda b, h, w, c: [
        *(torch.randn(b, h, w, c), 1 + weight(c), weight(c), weight(4 * c - 2, c)),
        *(filters(4 * c - 2, 3, 3), weight(c, 2 * c - 1)),
    ],
    "attention_input": lambda b, h, w, c: [sliced(b, h, w, c), weight(3 * c, c), filters(3 * c, 3, 3)],
    "gated_unit": lambda b, h, w, c: [
        *(sliced(b, h, w, c), weight(2 * (c * 8 // 3), c), weight(2 * (c * 8 // 3))),
        *(filters(b, c, 7, 7), weight(c, c * 8 // 3)),
    ],
    "channel_mlp": lambda b, h, w, c: [sliced(b, h, w, c), weight(2 * c, c), weight(c, 2 * c)],
    "fusion_linear": lambda *size: _fusion_linear(*size, count=3),
    "fusion_linear of two": lambda *size: _fusion_linear(*size, count=2),
    # Parts of the fused operators in the Triton backend
    "norm_linear": lambda b, h, w, c: [sliced(b, h, w, c), weight(c), weight(c), weight(c // 2 + 1, c)],
    "gated_depthwise": lambda b, h, w, c: [sliced(b, h, w, 2 * c), filters(2 * c, 3, 3)],
    "gated_values": lambda b, h, w, c: [sliced(b, h, w, 2 * c), filters(b, max(c // 3, 1), 7, 7)],
}

PARTS = ("norm_linear", "gated_depthwise", "gated_values")
OPERATORS = tuple(name for name in INPUTS if name not in PARTS)
TRITON_KERNELS = ("depthwise", "dynamic_depthwise", "moments", "gram", *PARTS)
"""Operators whose forward pass is one Triton kernel; the others are composed of them."""


def inputs(name: str, size: Size) -> list[Any]:
    """Return the inputs of an operator, the same at every call."""
    torch.manual_seed(0)
    return INPUTS[name](*size)


def find(backend: Any, name: str) -> Function:
    """Return the backend's operator or, for Triton, the kernel of this name."""
    name = name.split()[0]
    if backend is not reference and name == "norm_linear":
        return lambda *tensors: operators.norm_linear(*tensors, reference.NORM_EPS)[0]
    found: Function = getattr(operators if name in PARTS and backend is not reference else backend, name)
    return found


def flat(values: Any) -> list[Tensor]:
    """Return the tensors in nested lists and tuples."""
    if isinstance(values, Tensor):
        return [values]
    return [tensor for value in values for tensor in flat(value)]


def leaves(values: Any, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    """Return copies that require gradients; a slice stays a slice."""
    if isinstance(values, list):
        return [leaves(value, dtype, device) for value in values]
    if values.is_contiguous():
        return values.detach().to(device, dtype, copy=True).requires_grad_()
    wider = torch.empty((*values.shape[:-1], values.stride(-2)), dtype=dtype, device=device)
    return wider[..., 2:-1].copy_(values).detach().requires_grad_()


def results(
    function: Function, tensors: list[Any], upstream: Sequence[Tensor] | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Return outputs and gradients of all inputs, for `upstream` gradients of the outputs, random by default."""
    outputs = flat([function(*tensors)])
    if upstream is None:
        generator = torch.Generator().manual_seed(1)
        upstream = [torch.randn(y.shape, generator=generator).to(y.device, y.dtype) for y in outputs]
    torch.autograd.backward(outputs, [g.to(y.dtype) for g, y in zip(upstream, outputs, strict=True)])
    return [y.detach() for y in outputs], [x.grad for x in flat(tensors)]


def pairs(
    backend: Any, name: str, size: Size, dtype: torch.dtype, device: str = "cpu"
) -> list[tuple[Tensor, Tensor]]:
    """Return pairs of each output and gradient of a backend and that of the specification in float64."""
    given = leaves(inputs(name, size), dtype, device)
    outputs, gradients = results(find(backend, name), given)
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(y.shape, generator=generator).to(y.device, y.dtype) for y in outputs]
    exact = results(find(reference, name), leaves(given, torch.float64, device), upstream)
    return list(zip([*outputs, *gradients], [*exact[0], *exact[1]], strict=True))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference over the norm or 1: in the tail of GELU fp32 has absolute precision only."""
    return float((found - expected).norm() / expected.norm().clamp_min(1))


def largest_error(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest number or 1, whichever is larger."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1))


def repeats(backend: Any, name: str, size: Size, device: str = "cpu") -> bool:
    """Return whether two runs give the same bits."""
    first, second = (
        flat(results(find(backend, name), leaves(inputs(name, size), device=device))) for _ in range(2)
    )
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def check_operator(operator: Any, tensors: list[Any]) -> None:
    """Run torch's own checks: schema, gradients, shapes without data, compilation."""
    torch.library.opcheck(operator, tensors)


def check_triton_operator(name: str, device: str = "cpu") -> None:
    """Run torch's own checks on a Triton operator."""
    tensors = leaves(inputs(name, (1, 1, 2, 2)), device=device)
    if name == "norm_linear":
        check_operator(operators.norm_linear, [*tensors, reference.NORM_EPS])
    else:
        check_operator(getattr(operators, "depthwise" if name == "dynamic_depthwise" else name), tensors)
