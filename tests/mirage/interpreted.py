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

from mirage import ModelConfig
from mirage.blocks import Block
from mirage.kernels import composed, reference, triton_ops

Form = Callable[..., Tensor | tuple[Tensor, ...]]

SIZES = [(1, 1, 1, 1), (2, 3, 2, 10), (1, 17, 1, 21), (1, 1, 5, 85)]
"""(b, h, w, c): one pixel, two images, more rows than a strip, more than one block of channels."""

SIZES_OF = {"dynamic_depthwise": SIZES[:2], "gated_depthwise": SIZES[1::2], "gated_values": SIZES[1::2]}
"""Where fewer will do, since the interpreter is slow: strips and blocks are those of `depthwise`."""

SMALL = (1, 2, 2, 10)

PRODUCTS = ["gram", "norm_linear"]
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
    out, _, _ = triton_ops.norm_linear_and_statistics(x, scale, shift, weight, reference.NORM_EPS)
    return out


FORMS: dict[str, tuple[Form, Form]] = {
    "depthwise": (triton_ops.depthwise, reference.depthwise),
    "dynamic_depthwise": (triton_ops.depthwise, reference.dynamic_depthwise),
    "gated_depthwise": (triton_ops.gated_depthwise, reference.gated_depthwise),
    "gated_values": (triton_ops.gated_values, reference.gated_values),
    "gram": (triton_ops.gram, reference.gram),
    "moments": (triton_ops.moments, reference.moments),
    "norm_linear": (norm_linear, reference.norm_linear),
}


def results(form: Form, leaves: list[Tensor], upstream: list[Tensor] | None = None) -> list[Tensor]:
    """Outputs, then gradients of all inputs for the `upstream` gradients of the outputs, by default random ones."""
    out = form(*leaves)
    outputs = out if isinstance(out, tuple) else (out,)
    torch.manual_seed(1)
    random = [torch.randn(y.shape).to(y.dtype) for y in outputs]
    torch.autograd.backward(
        outputs, [g.to(y.dtype) for g, y in zip(upstream or random, outputs, strict=True)]
    )
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
    return max(
        float((a - b).abs().max() / b.abs().max().clamp_min(1)) for a, b in zip(found, exact, strict=True)
    )


def repeats(name: str) -> bool:
    """Whether two runs give the same bits."""
    kernel, _ = FORMS[name]
    first, second = (results(kernel, leaves(name, SMALL, torch.float32)) for _ in range(2))
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def obeys(name: str) -> bool:
    """Whether the operator passes torch's own checks: schema, gradients, shapes without data, compilation."""
    operator = FORMS[name][0]
    extra = []
    if name == "norm_linear":
        operator, extra = triton_ops.norm_linear_and_statistics, [reference.NORM_EPS]
    torch.library.opcheck(operator, [*leaves(name, (1, 2, 2, 3), torch.float32), *extra])
    return True


def block(choice: str) -> list[Tensor]:
    """A whole block in training, with its gradients, by Triton's kernels (`auto`) or by the plain forms."""
    composed.CHOICE = choice
    torch.manual_seed(0)
    made = Block(12, 2, ModelConfig(dim=12))
    x = torch.randn(2, 3, 4, 12, requires_grad=True)
    out = made(x, torch.tensor([1.0, 0.5]))
    out.square().sum().backward()
    parameters = [p.grad for p in made.parameters() if p.grad is not None]
    return [out.detach(), *made.buffers(), x.grad, *parameters]


def block_error() -> float:
    """Largest difference in a block, relative to the largest number of each result."""
    pairs = list(zip(block("auto"), block("reference"), strict=True))
    assert len(pairs) > 20
    apart = [(a.float() - b.float()).abs().max() / b.float().abs().max().clamp_min(1) for a, b in pairs]
    return float(max(apart))


def main() -> None:
    """Every case."""
    found: dict[str, object] = {"block": block_error()}
    composed.CHOICE = "auto"
    for name in FORMS:
        found[name] = {
            "fp32": {str(size): error(name, size, torch.float32) for size in SIZES_OF.get(name, SIZES)},
            "bf16": 0.0 if name in PRODUCTS else error(name, SMALL, torch.bfloat16),
            "fp16": error(name, SMALL, torch.float16),
            "repeats": repeats(name),
            "obeys": name == "dynamic_depthwise" or obeys(name),  # the same operator as `depthwise`
        }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
