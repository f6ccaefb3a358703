"""Make the Triton kernels run on a CPU, through Triton's interpreter: slow, and without a GPU's memory model."""

import importlib.util
import os
import sys

import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None


def interpret_triton() -> None:
    """Import the kernels so that they are interpreted, where there is no GPU to run them.

    Triton decides when a kernel is decorated, so this comes before any other import of Triton; kernels that others
    import later are compiled as usual.
    """
    if torch.cuda.is_available() or not HAS_TRITON or "mirage.kernels.triton.gated" in sys.modules:
        return
    assert "triton" not in sys.modules, "imported before it could be told to interpret"
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        import triton.experimental.gluon.language  # noqa: F401  # the interpreter imports it when it is run

        from mirage.kernels.triton import convolution, gated, norm_linear, reductions  # noqa: F401
    finally:
        del os.environ["TRITON_INTERPRET"]
