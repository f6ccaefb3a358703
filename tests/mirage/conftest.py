"""Interprets the Triton kernels, before a test module imports Triton for another reason."""

from tests.mirage.interpreter import interpret_triton

interpret_triton()
