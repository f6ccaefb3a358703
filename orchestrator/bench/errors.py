"""The one error of the benchmarks; in a module of its own, since the bench must not need the rest."""

from __future__ import annotations


class BenchError(Exception):
    """A benchmark cannot be run as asked; the message says what to do."""
