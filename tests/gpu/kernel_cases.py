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


def _gated_convolution(b: int, h: int, w: int, c: int, generated: bool = True) -> list[Any]:
    mean, var, hidden = 0.3 * torch.randn(c), 0.5 + torch.rand(c), 8 * c // 3
    sums = b * h * w * torch.cat((torch.ones(1), mean, var + mean.square()))
    made = [weight(c, c), weight(49 * c, c)] if generated else [filters(c, 7, 7)]
    return [
        *(sliced(b, h, w, c), torch.randn(b, c), sums, 1 + weight(c), weight(c), 1 + torch.rand(1)),
        *(weight(2 * hidden, c), *made, weight(c, hidden), weight(c + 1, c)),
    ]


INPUTS: dict[str, Callable[[int, int, int, int], list[Any]]] = {
    "depthwise": lambda b, h, w, c: [sliced(b, h, w, c), filters(c, 3, 3)],
    "dynamic_depthwise": lambda b, h, w, c: [sliced(b, h, w, c), filters(b, c, 7, 7)],
    "moments": lambda b, h, w, c: [sliced(b, h, w, c)],
    "batch_sums": lambda b, h, w, c: [sliced(b, h, w, c)],
    "gram": lambda b, h, w, c: [sliced(b, h * w, c)],
    "layer_norm": lambda b, h, w, c: [sliced(b, h, w, c), weight(c), weight(c)],
    "feed_forward": lambda b, h, w, c: [
        *(torch.randn(b, h, w, c), 1 + weight(c), weight(c), weight(4 * c - 2, c)),
        *(filters(4 * c - 2, 3, 3), weight(c, 2 * c - 1)),
    ],
    "attention_input": lambda b, h, w, c: [sliced(b, h, w, c), weight(3 * c, c), filters(3 * c, 3, 3)],
    "attention": lambda b, h, w, c: [
        *(sliced(b, h, w, c), weight(3 * c, c), filters(3 * c, 3, 3), 1 + torch.rand(2 - c % 2)),
    ],
    "gated_unit": lambda b, h, w, c: [
        *(sliced(b, h, w, c), weight(2 * (c * 8 // 3), c), weight(2 * (c * 8 // 3))),
        *(filters(b, c, 7, 7), weight(c, c * 8 // 3)),
    ],
    "gated_convolution": _gated_convolution,
    "gated_convolution in eval mode": _gated_convolution,
    "gated_convolution with filters": lambda *size: _gated_convolution(*size, generated=False),
    "channel_mlp": lambda b, h, w, c: [sliced(b, h, w, c), weight(2 * c, c), weight(c, 2 * c)],
    "fusion_linear": lambda *size: _fusion_linear(*size, count=3),
    "fusion_linear of two": lambda *size: _fusion_linear(*size, count=2),
    "fusion_linear with shortcut": lambda b, h, w, c: [
        *(*_fusion_linear(b, h, w, c, count=3), sliced(b, h, w, c + 3)),
    ],
    "fusion_linear with mlp": lambda b, h, w, c: [
        *(*_fusion_linear(b, h, w, c, count=3), sliced(b, h, w, c + 3), [weight(2 * c, c), weight(c, 2 * c)]),
    ],
}
INPUTS["feed_forward with shortcut"] = INPUTS["feed_forward"]

CPU_PARTS = ("moments", "attention_input", "gated_unit")
"""Operators that only the CPU backend and the specification have."""
OPERATORS = tuple(INPUTS)
TRITON = tuple(name for name in INPUTS if name not in CPU_PARTS)


def inputs(name: str, size: Size) -> list[Any]:
    """Return the inputs of an operator, the same at every call."""
    torch.manual_seed(0)
    return INPUTS[name](*size)


def find(backend: Any, name: str) -> Function:
    """Return the backend's operator for these inputs."""
    found: Function = getattr(backend, name.split()[0])
    if name == "feed_forward with shortcut":
        return lambda *tensors: found(*tensors, shortcut=True)
    if name.startswith("fusion_linear"):
        return lambda maps, scales, *rest: found(maps, list(scales.split(1)), *rest)
    if not name.startswith("gated_convolution"):
        return found

    def run(x: Tensor, image_mean: Tensor, sums: Tensor, *weights: Tensor) -> Tensor:
        mean, var = (torch.full_like(image_mean[0], value).detach() for value in (0.1, 2.0))
        sums = torch.cat(
            (sums.new_full((1,), x.shape[:3].numel()), sums[1:])
        )  # the number of pixels is a constant
        path_scale = torch.linspace(0.5, 1.5, x.shape[0], device=x.device, dtype=torch.float64)
        made = (None, weights[4]) if name == "gated_convolution with filters" else weights[4:6]
        training = name != "gated_convolution in eval mode"
        statistics = reference.NormStatistics(image_mean, sums if training else None, mean, var)
        return found(x, statistics, *weights[:4], *made, *weights[-2:], path_scale)

    return run


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
    return [y.detach() for y in outputs], [
        torch.zeros_like(x) if x.grad is None else x.grad for x in flat(tensors)
    ]


def pairs(
    backend: Any, name: str, size: Size, dtype: torch.dtype, device: str = "cpu"
) -> list[tuple[Tensor, Tensor]]:
    """Return pairs of each output and gradient of a backend and that of the specification in float64."""
    given = leaves(inputs(name, size), dtype, device)
    return in_pairs(find(backend, name), find(reference, name), given)


def in_pairs(function: Function, plain: Function, given: list[Any]) -> list[tuple[Tensor, Tensor]]:
    """Return pairs of each output and gradient of a function and that of a plain one in float64."""
    outputs, gradients = results(function, given)
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(y.shape, generator=generator).to(y.device, y.dtype) for y in outputs]
    device = str(outputs[0].device)
    exact = results(plain, leaves(given, torch.float64, device), upstream)
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
    extra: list[Any] = {
        "attention": [True],
        "layer_norm": [reference.NORM_EPS],
        "feed_forward": [True],
        "fusion_linear": [None],
    }.get(name, [])
    if name == "fusion_linear":
        tensors[1] = [torch.ones(1, device=device, requires_grad=True) for _ in tensors[0]]
    if name == "gated_convolution":
        tensors[3:3] = [torch.zeros(2, device=device), torch.ones(2, device=device)]
        extra = [None, True]
    check_operator(
        getattr(operators, "depthwise" if name == "dynamic_depthwise" else name), [*tensors, *extra]
    )
