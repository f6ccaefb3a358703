"""Count on a CPU what a training step keeps for its backward pass; as a program, print MiB per image.

For the Triton backend the operators of CUDA run, which decide what is kept; plain PyTorch replaces their kernels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from mirage import MIRAGE, ModelConfig
from mirage.kernels import reference, triton
from mirage.kernels.backend import use_backend
from mirage.memory import Backend, Precision


def convolve(x: Tensor, filters: Tensor) -> Tensor:
    run = reference.depthwise if filters.dim() == 3 else reference.dynamic_depthwise
    return run(x, filters).contiguous()


def norm_linear(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, ...]:
    pixels = x.shape[:3].numel()
    out = reference.norm_linear(x, scale, shift, weight).to(weight.dtype)
    return out.contiguous(), torch.empty(pixels), torch.empty(pixels)


KERNELS: dict[str, dict[str, Any]] = {
    "convolution": {"convolve": convolve},
    "gated": {
        "gated_depthwise": lambda hidden, filters: reference.gated_depthwise(hidden, filters).contiguous(),
        "gated_values": lambda hidden, filters: reference.gated_values(hidden, filters).contiguous(),
    },
    "norm_linear": {"norm_linear": norm_linear},
    "reductions": {"gram": reference.gram, "moments": reference.moments},
}


@contextmanager
def on_backend(backend: Backend) -> Iterator[None]:
    """Compute with this backend on a CPU, its Triton kernels replaced by plain PyTorch."""
    if backend == "cpu":
        yield
        return
    modules = {name: ModuleType(f"mirage.kernels.triton.{name}") for name in KERNELS}
    for name, module in modules.items():
        vars(module).update(KERNELS[name])
    with (
        patch.dict("sys.modules", {module.__name__: module for module in modules.values()}),
        patch.multiple(triton, create=True, **modules),
        use_backend("triton"),
    ):
        yield


def kept_bytes(model: MIRAGE, side: int, precision: Precision) -> int:
    """Return the bytes that autograd keeps of two images, each storage once, without the weights."""
    kept: dict[int, Tensor] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x
        return x

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        output = model(torch.rand(2, 3, side, side), torch.arange(2))
    assert output.image.requires_grad
    return sum(x.untyped_storage().nbytes() for address, x in kept.items() if address not in weights)


if __name__ == "__main__":
    with on_backend("triton"):
        for size in ("tiny", "small"):
            for precision in ("fp32", "bf16"):
                mib = kept_bytes(MIRAGE(getattr(ModelConfig, size)()), 128, precision) / 2 / 2**20
                print(f"{size} {precision} {mib:.0f} MiB")
