"""Runs the Triton kernels on a CPU, through Triton's interpreter, beside their plain form; prints JSON.

A program of its own, because TRITON_INTERPRET must be set before Triton is imported and holds for the whole process.
"""

import json
import os
import sys
from collections.abc import Callable

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor

from mirage.kernels import reference, triton_ops

Form = Callable[..., Tensor | tuple[Tensor, ...]]

SIZES = [(1, 1, 1, 1), (2, 3, 2, 10), (1, 17, 1, 21), (1, 1, 5, 85)]
"""(b, h, w, c): one pixel, two images, more rows than a strip, more than one block of channels."""

SMALL = (1, 2, 2, 10)

PRODUCTS = ["gram"]
"""Made of matrix products, which the interpreter takes of bf16 as if it were integers: left out there."""


def sliced(*size: int) -> Tensor:
    """A slice of a wider map, as the model passes them."""
    return torch.randn(*size[:-1], size[-1] + 3)[..., 2:-1]


def arguments(name: str, size: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(0)
    batch, height, width, channels = size
    extra = {
        "depthwise": [torch.randn(channels, 3, 3)],
        "dynamic_depthwise": [torch.randn(batch, channels, 7, 7)],
    }
    x = sliced(batch, height * width, channels) if name == "gram" else sliced(*size)
    return [x, *extra.get(name, [])]


FORMS: dict[str, tuple[Form, Form]] = {
    "depthwise": (triton_ops.depthwise, reference.depthwise),
    "dynamic_depthwise": (triton_ops.depthwise, reference.dynamic_depthwise),
    "gram": (triton_ops.gram, reference.gram),
    "moments": (triton_ops.moments, reference.moments),
}


def results(form: Form, leaves: list[Tensor], upstream: list[Tensor] | None = None) -> list[Tensor]:
    """Outputs, then gradients of all inputs for the `upstream` gradients of the outputs, by default random ones."""
    out = form(*leaves)
    outputs = out if isinstance(out, tuple) else (out,)
    torch.manual_seed(1)
    random = [torch.randn(y.shape).to(y.dtype) for y in outputs]
    torch.autograd.backward(outputs, [g.to(y.dtype) for g, y in zip(upstream or random, outputs, strict=True)])
    return [y.detach() for y in outputs] + [x.grad for x in leaves if x.grad is not None]


def leaves(name: str, size: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    return [x.to(dtype).requires_grad_() for x in arguments(name, size)]


def error(name: str, size: tuple[int, ...], dtype: torch.dtype) -> float:
    """Largest difference of any result, relative to the largest number of that result in float64."""
    kernel, plain = FORMS[name]
    inputs = leaves(name, size, dtype)
    found = results(kernel, inputs)
    torch.manual_seed(1)
    upstream = [torch.randn(y.shape).to(y.dtype) for y in found[: -len(inputs)]]  # those that the kernel saw
    exact = results(plain, [x.detach().double().requires_grad_() for x in inputs], upstream)
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1)) for a, b in zip(found, exact, strict=True))


def repeats(name: str) -> bool:
    """Whether two runs give the same bits."""
    kernel, _ = FORMS[name]
    first, second = (results(kernel, leaves(name, SMALL, torch.float32)) for _ in range(2))
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def obeys(name: str) -> bool:
    """Whether the operator passes torch's own checks: schema, gradients, shapes without data, compilation."""
    torch.library.opcheck(FORMS[name][0], leaves(name, (1, 2, 2, 3), torch.float32))
    return True


def main() -> None:
    """Every case."""
    found = {}
    for name in FORMS:
        found[name] = {
            "fp32": {str(size): error(name, size, torch.float32) for size in SIZES},
            "bf16": 0.0 if name in PRODUCTS else error(name, SMALL, torch.bfloat16),
            "fp16": error(name, SMALL, torch.float16),
            "repeats": repeats(name),
            "obeys": obeys(name),
        }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
