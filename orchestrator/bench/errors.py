"""The error of the benchmarks, in a module without imports."""

from __future__ import annotations


class BenchError(Exception):
    """A benchmark cannot be run as requested; the message says what to do."""
