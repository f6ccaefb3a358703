"""The `mirage` command: one module per group of commands, in the order in which `--help` lists them.

Each command imports what it needs when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from typing import NoReturn

from orchestrator.cli import jobs, resilience, pack, datasets, local  # isort: skip
from orchestrator.cli import restore, serve, evaluation, models, sweeps  # isort: skip
from orchestrator.cli.app import app, emit_error

__all__ = [
    "datasets",
    "evaluation",
    "jobs",
    "local",
    "main",
    "models",
    "pack",
    "resilience",
    "restore",
    "serve",
    "sweeps",
]


def main() -> NoReturn:
    """Run the command line; errors that a user can cure are printed without a traceback, exit status 2."""
    import logging

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        app()
    except KeyboardInterrupt:
        emit_error("interrupted")
        sys.exit(130)
    except Exception as error:
        if not _is_ours(error):
            raise
        emit_error(str(error))
        sys.exit(2)
    sys.exit(0)


def _is_ours(error: Exception) -> bool:
    """Return whether the error says what a user can do; anything else is a bug and keeps its traceback."""
    from mirage.weights import WeightsError
    from orchestrator.errors import OrchestratorError
    from shards.errors import ShardsError

    return isinstance(error, OrchestratorError | ShardsError | WeightsError)
