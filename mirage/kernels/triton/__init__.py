"""Implement the kernels for GPUs in Triton."""
