"""Count on a CPU what a training step keeps for its backward pass; as a program, print MiB per image.

The Triton backend runs on fake tensors, which have shapes and no numbers: its operators declare what they keep.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mirage import MIRAGE, ModelConfig
from mirage.kernels.backend import use_backend
from mirage.memory import Backend, Precision


@contextmanager
def on_backend(backend: Backend) -> Iterator[None]:
    """Compute with this backend on a CPU; models must be made inside the block."""
    if backend == "cpu":
        yield
        return
    with FakeTensorMode(), use_backend("triton"):
        yield


def kept_bytes(model: MIRAGE, side: int, precision: Precision) -> int:
    """Return the bytes that autograd keeps of two images, each storage once, without the weights."""
    kept: dict[int, Tensor] = {}
    weights = {_storage(p) for p in model.parameters()}

    def keep(x: Tensor) -> Tensor:
        kept[_storage(x)] = x
        return x

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        output = model(torch.rand(2, 3, side, side), torch.arange(2))
    assert output.image.requires_grad
    return sum(x.untyped_storage().nbytes() for storage, x in kept.items() if storage not in weights)


def _storage(x: Tensor) -> int:
    """Return what identifies the storage of a tensor, which may be fake."""
    return x.untyped_storage()._cdata


if __name__ == "__main__":
    with on_backend("triton"):
        for size in ("tiny", "small"):
            for precision in ("fp32", "bf16"):
                mib = kept_bytes(MIRAGE(getattr(ModelConfig, size)()), 128, precision) / 2 / 2**20
                print(f"{size} {precision} {mib:.0f} MiB")
