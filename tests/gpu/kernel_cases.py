"""What the Triton kernels are compared with, and how: on a GPU, and by tests/mirage/interpreted.py on a CPU."""

from collections.abc import Callable

import torch
from torch import Tensor

from mirage.kernels import reference
from mirage.kernels.triton import ops

Form = Callable[..., Tensor | tuple[Tensor, ...]]

SIZES = [(1, 1, 1, 1), (2, 3, 2, 10), (1, 17, 1, 21), (1, 1, 5, 85)]
"""(b, h, w, c): one pixel, two images, more rows than a strip, more than one block of channels."""

SMALL = (1, 2, 2, 10)


def sliced(*size: int) -> Tensor:
    """A slice of a wider map, as the model passes them."""
    return torch.randn(*size[:-1], size[-1] + 3)[..., 2:-1]


def arguments(name: str, size: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(0)
    batch, height, width, channels = size
    extra = {
        "depthwise": [torch.randn(channels, 3, 3)],
        "dynamic_depthwise": [torch.randn(batch, channels, 7, 7)],
        "gated_depthwise": [torch.randn(2 * channels, 3, 3)],
        "gated_values": [torch.randn(batch, max(channels // 3, 1), 7, 7)],
        "norm_linear": [
            torch.randn(channels),
            torch.randn(channels),
            torch.randn(channels // 2 + 1, channels),
        ],
    }
    if name.startswith("gated"):
        channels *= 2
    x = sliced(batch, height * width, channels) if name == "gram" else sliced(batch, height, width, channels)
    return [x, *extra.get(name, [])]


def norm_linear(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor) -> Tensor:
    out, _, _ = ops.norm_linear_and_statistics(x, scale, shift, weight, reference.NORM_EPS)
    return out


FORMS: dict[str, tuple[Form, Form]] = {
    "depthwise": (ops.depthwise, reference.depthwise),
    "dynamic_depthwise": (ops.depthwise, reference.dynamic_depthwise),
    "gated_depthwise": (ops.gated_depthwise, reference.gated_depthwise),
    "gated_values": (ops.gated_values, reference.gated_values),
    "gram": (ops.gram, reference.gram),
    "moments": (ops.moments, reference.moments),
    "norm_linear": (norm_linear, reference.norm_linear),
}


def results(form: Form, leaves: list[Tensor], upstream: list[Tensor] | None = None) -> list[Tensor]:
    """Outputs, then gradients of all inputs for the `upstream` gradients of the outputs, by default random ones."""
    out = form(*leaves)
    outputs = out if isinstance(out, tuple) else (out,)
    torch.manual_seed(1)
    random = [torch.randn(y.shape).to(y.device, y.dtype) for y in outputs]
    torch.autograd.backward(
        outputs, [g.to(y.dtype) for g, y in zip(upstream or random, outputs, strict=True)]
    )
    return [y.detach() for y in outputs] + [x.grad for x in leaves if x.grad is not None]


def placed(x: Tensor, dtype: torch.dtype, device: str) -> Tensor:
    """There, as a slice if it is one here."""
    if x.is_contiguous():
        return x.to(device, dtype)
    wider = torch.empty((*x.shape[:-1], x.stride(-2)), dtype=dtype, device=device)
    return wider[..., 2:-1].copy_(x).detach()


def leaves(name: str, size: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """The arguments: x is a slice of a wider map, as the model passes it."""
    return [placed(x, dtype, device).requires_grad_() for x in arguments(name, size)]


def error(name: str, size: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> float:
    """Largest difference of any result, relative to the largest number of that result in float64."""
    kernel, plain = FORMS[name]
    inputs = leaves(name, size, dtype, device)
    found = results(kernel, inputs)
    torch.manual_seed(1)
    upstream = [
        torch.randn(y.shape).to(y.device, y.dtype) for y in found[: -len(inputs)]
    ]  # those that the kernel saw
    exact = results(plain, [x.detach().double().requires_grad_() for x in inputs], upstream)
    return max(
        float((a - b).abs().max() / b.abs().max().clamp_min(1)) for a, b in zip(found, exact, strict=True)
    )


def repeats(name: str, size: tuple[int, ...] = SMALL, device: str = "cpu") -> bool:
    """Whether two runs give the same bits."""
    kernel, _ = FORMS[name]
    first, second = (results(kernel, leaves(name, size, torch.float32, device)) for _ in range(2))
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def obeys(name: str, device: str = "cpu") -> bool:
    """Whether the operator passes torch's own checks: schema, gradients, shapes without data, compilation."""
    operator = FORMS[name][0]
    extra = []
    if name == "norm_linear":
        operator, extra = ops.norm_linear_and_statistics, [reference.NORM_EPS]
    torch.library.opcheck(operator, [*leaves(name, (1, 2, 2, 3), torch.float32, device), *extra])
    return True
