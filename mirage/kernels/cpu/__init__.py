"""Implement the kernels for CPUs, in plain PyTorch operators and in C."""
