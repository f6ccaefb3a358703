"""Share the SQLite store of MLflow with the tests of the orchestrator."""

from tests.orchestrator.conftest import store

__all__ = ["store"]
