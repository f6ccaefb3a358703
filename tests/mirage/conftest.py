"""Load the Triton kernels in interpreted form before a test module imports Triton for another reason."""

from tests.mirage.interpreter import interpret_triton

interpret_triton()
