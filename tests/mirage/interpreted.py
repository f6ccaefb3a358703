"""Runs the Triton kernels on a CPU, through Triton's interpreter, beside their plain form; prints JSON.

A program of its own, because TRITON_INTERPRET must be set before Triton is imported and holds for the whole process.
"""

import json
import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "gpu"))

import torch
from kernel_cases import FORMS, SIZES, SMALL, error, obeys, repeats
from torch import Tensor

from mirage import ModelConfig
from mirage.blocks import Block
from mirage.kernels import dispatch

SIZES_OF = {"dynamic_depthwise": SIZES[:2], "gated_depthwise": SIZES[1::2], "gated_values": SIZES[1::2]}
"""Where fewer will do, since the interpreter is slow: strips and blocks are those of `depthwise`."""

PRODUCTS = ["gram", "norm_linear"]
"""Made of matrix products, which the interpreter takes of bf16 as if it were integers: left out there."""


def block(choice: str) -> list[Tensor]:
    """A whole block in training, with its gradients, by Triton's kernels (`auto`) or by the plain forms."""
    dispatch.CHOICE = choice
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
    dispatch.CHOICE = "auto"
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
