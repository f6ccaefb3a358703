"""The `mirage` command: one module per group of commands, in the order in which `--help` lists them.

Each command imports what it needs when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import NoReturn

from orchestrator.cli import init, local, pack, datasets, degrade, jobs, runs, sweeps  # isort: skip
from orchestrator.cli import evaluation, models, webhooks, restore, serve, resilience  # isort: skip
from orchestrator.cli.app import app, emit_error
from orchestrator.cli.memory_advice import find_advice
from orchestrator.cli.progress import use_bars_in_a_terminal
from orchestrator.errors import OutputError, is_out_of_memory
from orchestrator.masking import MaskingFormatter, print_traceback, without_password

__all__ = [
    "app",
    "datasets",
    "degrade",
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


_MORE_SPACE = "Free some space, or choose another place."
_MORE_RIGHTS = "Make it readable and writable, or choose another place."
_MORE_FILES = "Allow more open files: ulimit -n 4096."
_CONDITIONS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _MORE_SPACE),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _MORE_RIGHTS),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), _MORE_FILES),
}
"""What is no bug of a command wherever it happens: error of the system -> what to do."""


def main() -> NoReturn:
    """Run the command line. Errors that a user can fix are printed without a traceback, with exit status 2."""
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(MaskingFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    _prepare_streams()
    use_bars_in_a_terminal()
    try:
        _require_current_folder()
        app(prog_name="mirage")
    except KeyboardInterrupt:
        emit_error("interrupted")
        sys.exit(130)
    except Exception as error:
        if is_out_of_memory(error) and not _is_user_error(error):
            what = f"{type(error).__name__}: {' '.join(str(error).split())}"
            emit_error(f"memory ran out: {what}. {find_advice(error, sys.argv[1:])}")
            sys.exit(2)
        if isinstance(error, OSError) and (remedy := _remedy(error)):
            what = f"{error.filename}: " if error.filename else ""
            emit_error(f"{what}{error.strerror}. {remedy}")
            sys.exit(2)
        if not _is_user_error(error):
            sys.excepthook = print_traceback  # in place of Typer's, which would print passwords in messages
            raise
        emit_error(without_password(str(error)))
        sys.exit(2)
    sys.exit(0)


def _remedy(error: OSError) -> str:
    """Return what to do about a condition of the machine, "" for another error."""
    if "usable temporary directory" in str(error):  # of Python: no default place can be written
        return "Free some space, or name a folder in TMPDIR."
    return _CONDITIONS.get(error.errno or 0, "")


def _require_current_folder() -> None:
    """Raise OutputError if the folder that the command runs in was removed: no relative path means anything."""
    try:
        os.getcwd()
    except OSError as error:
        raise OutputError(
            f"the current folder does not exist any more ({error.strerror}). Go to another."
        ) from error


def _prepare_streams() -> None:
    """Let standard output and error take any text, and put /dev/null where a standard stream is closed.

    Names of files hold any bytes, and some terminals know ASCII only. A file that is opened while a standard stream is
    closed takes its place.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _is_user_error(error: Exception) -> bool:
    """Return whether the message says what a user can do. Other errors are bugs and keep their tracebacks."""
    from mirage.weights import WeightsError
    from orchestrator.errors import OrchestratorError
    from shards.errors import ShardsError

    return isinstance(error, OrchestratorError | ShardsError | WeightsError)
