"""Sweeps are made here as in the tests of the package that runs them."""

from tests.orchestrator.sweeps.conftest import make_sweep

__all__ = ["make_sweep"]
