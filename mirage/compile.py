"""Blocks through torch.compile: each in place, so that weights keep their names, and each shape a program of its own.

The numbers are those of the eager model to rounding. Where nothing can compile the model stays eager.
"""

from __future__ import annotations

import functools
import warnings
from contextlib import AbstractContextManager

import torch
from torch import nn

from mirage.blocks import Block

PROGRAMS = 64
"""Kinds of block times shapes of their input that one process compiles; what comes after runs eagerly."""


def compile_blocks(model: nn.Module, kind: type[nn.Module] = Block) -> bool:
    """Have every block of `model` compiled when it is first called with a shape; return whether it will be.

    Where no compiler works all stays eager, after one warning per process.
    """
    device = next(model.parameters()).device
    if obstacle(device.type):
        _warn(device.type)
        return False
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, PROGRAMS)
    for module in model.modules():
        if isinstance(module, kind):
            module.compile(dynamic=False)
    return True


def eagerly() -> AbstractContextManager[None]:
    """Return a context in which compiled blocks run eagerly: where many shapes come once, compiling is not worth it."""
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


@functools.cache
def obstacle(device: str) -> str:
    """What keeps torch.compile from working on this type of device; empty where it compiled something small.

    Asked before anything is compiled, since a program out of torch's cache would run without a compiler.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        if device == "cpu":
            get_cpp_compiler()
        torch.compile(_small, dynamic=False)(torch.ones(8, device=device))
    except RuntimeError as error:  # what dynamo, inductor and the search for a compiler raise
        return str(error).strip().splitlines()[0]
    return ""


def _small(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1


@functools.cache
def _warn(device: str) -> None:
    warnings.warn(f"nothing can be compiled here, the blocks run eagerly: {obstacle(device)}", stacklevel=3)
