"""Run the Triton kernels on a CPU, through Triton's interpreter: slow, and without the memory model of a GPU."""

import importlib.util
import os
import sys

import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None


def interpret_triton() -> None:
    """Import the kernels in interpreted form if there is no GPU.

    Triton decides when a kernel is decorated, so call this before any other import of Triton. Kernels of other packages
    that are imported later are compiled as usual.
    """
    if torch.cuda.is_available() or not HAS_TRITON or "mirage.kernels.triton.gated" in sys.modules:
        return
    assert "triton" not in sys.modules, "Triton was imported before interpret_triton was called"
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        import triton.experimental.gluon.language  # noqa: F401  # the interpreter's own late import

        from mirage.kernels.triton import (  # noqa: F401
            attention_branch,
            convolution,
            convolution_branch,
            gated,
            linear_convolution,
            norm_linear,
            pointwise,
            reductions,
        )
    finally:
        del os.environ["TRITON_INTERPRET"]
