"""The `mirage` command: one module per group of commands, in the order in which `--help` lists them.

Each command imports what it needs when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from typing import NoReturn

from orchestrator.cli import init, local, pack, datasets, jobs, runs, sweeps  # isort: skip
from orchestrator.cli import evaluation, models, webhooks, restore, serve, resilience  # isort: skip
from orchestrator.cli.app import app, emit_error
from orchestrator.cli.progress import use_bars_in_a_terminal
from orchestrator.errors import MEMORY_ADVICE, is_out_of_memory
from orchestrator.masking import MaskingFormatter, print_traceback, without_password

__all__ = [
    "app",
    "datasets",
    "evaluation",
    "init",
    "jobs",
    "local",
    "main",
    "models",
    "pack",
    "resilience",
    "restore",
    "runs",
    "serve",
    "sweeps",
    "webhooks",
]


def main() -> NoReturn:
    """Run the command line. Errors that a user can fix are printed without a traceback, with exit status 2."""
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(MaskingFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    use_bars_in_a_terminal()
    try:
        app(prog_name="mirage")
    except KeyboardInterrupt:
        emit_error("interrupted")
        sys.exit(130)
    except Exception as error:
        if is_out_of_memory(error) and not _is_user_error(error):
            emit_error(
                f"memory ran out: {type(error).__name__}: {' '.join(str(error).split())}. {MEMORY_ADVICE}"
            )
            sys.exit(2)
        if not _is_user_error(error):
            sys.excepthook = print_traceback  # in place of Typer's, which would print passwords in messages
            raise
        emit_error(without_password(str(error)))
        sys.exit(2)
    sys.exit(0)


def _is_user_error(error: Exception) -> bool:
    """Return whether the message says what a user can do. Other errors are bugs and keep their tracebacks."""
    from mirage.weights import WeightsError
    from orchestrator.errors import OrchestratorError
    from shards.errors import ShardsError

    return isinstance(error, OrchestratorError | ShardsError | WeightsError)
