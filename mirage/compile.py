"""torch.compile for the blocks, in place, so that weights keep their names. Each input shape is compiled by itself.

The numbers equal those of the eager model up to rounding. Without a working compiler the model stays eager.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from mirage.blocks import Block
from mirage.kernels.cpu.library import library

MAX_PROGRAMS = 64
"""Kinds of block times input shapes that one process compiles; further ones run eagerly."""


def compile_blocks(model: nn.Module, block: type[nn.Module] = Block) -> bool:
    """Compile every module of type `block` at its first call with a shape; return whether that is possible.

    Without a working compiler the model stays eager, after one warning per process.
    """
    device = next(model.parameters()).device
    if compiler_error(device.type):
        _warn(device.type)
        return False
    if device.type == "cpu":
        library()  # built now, or torch would trace the first call, which builds it
    compile_each(model, block)
    return True


def compile_each(
    model: nn.Module, block: type[nn.Module], backend: str | Callable[..., Any] = "inductor"
) -> None:
    """Compile every module of type `block` with this backend of torch.compile, at its first call with a shape."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_PROGRAMS)
    for module in model.modules():
        if isinstance(module, block):
            module.compile(dynamic=False, backend=backend)


def force_eager() -> AbstractContextManager[None]:
    """Return a context in which compiled blocks run eagerly, for many shapes that occur once."""
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


@functools.cache
def compiler_error(device: str) -> str:
    """Return why torch.compile fails on this type of device; empty if it compiled a small function.

    Checked first, because a program from torch's cache would run without a compiler.
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
    warnings.warn(
        f"torch.compile does not work here; the blocks run eagerly: {compiler_error(device)}", stacklevel=3
    )
