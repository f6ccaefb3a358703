"""What a training step keeps for its backward pass on a GPU, counted on a CPU; prints MiB per image of 128 x 128.

The operators are those of CUDA and decide what is kept; plain PyTorch stands in for the kernels inside them.
"""

import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mirage import MIRAGE, ModelConfig
from mirage.kernels import dispatch, reference, triton


def convolve(x: Tensor, taps: Tensor) -> Tensor:
    run = reference.depthwise if taps.dim() == 3 else reference.dynamic_depthwise
    return run(x, taps).contiguous()


def norm_linear(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, ...]:
    pixels = x.shape[:3].numel()
    out = reference.norm_linear(x, scale, shift, weight).to(weight.dtype)
    return out.contiguous(), torch.empty(pixels), torch.empty(pixels)


def stand_in(name: str, **functions: Any) -> None:
    module = ModuleType(f"mirage.kernels.triton.{name}")
    vars(module).update(functions)
    sys.modules[module.__name__] = module
    setattr(triton, name, module)


def kept_bytes(config: ModelConfig, side: int, bf16: bool) -> int:
    """Of two images, each storage once, without the weights."""
    model, kept = MIRAGE(config), {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x
        return x

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        model(torch.rand(2, 3, side, side), torch.arange(2))
    return sum(x.untyped_storage().nbytes() for address, x in kept.items() if address not in weights)


def stand_in_all() -> None:
    stand_in("depthwise", convolve=convolve)
    stand_in(
        "gated",
        gated_depthwise=lambda hidden, taps: reference.gated_depthwise(hidden, taps).contiguous(),
        gated_values=lambda hidden, windows: reference.gated_values(hidden, windows).contiguous(),
    )
    stand_in("norm_linear", norm_linear=norm_linear)
    stand_in("reductions", gram=reference.gram, moments=reference.moments)


if __name__ == "__main__":
    dispatch.INTERPRETED = dispatch.HAS_TRITON = True
    stand_in_all()
    for size in ("tiny", "small"):
        for bf16 in (False, True):
            mib = kept_bytes(getattr(ModelConfig, size)(), 128, bf16) / 2 / 2**20
            print(f"{size} {'bf16' if bf16 else 'fp32'} {mib:.0f} MiB")
