"""Connect to MLflow by URI; nothing here reads or sets MLflow's global state."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.tracking.uri import sqlite_file

_DEFAULTS = {
    # MLflow's own default is 7 retries, about four minutes per call.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Otherwise saving a model runs `pip install --dry-run`.
    "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Otherwise importing GitPython warns on machines without git.
    "GIT_PYTHON_REFRESH": "quiet",
}

_LOG_LEVELS = {
    "alembic": logging.WARNING,  # one line per migration of the schema
    "mlflow.store.db.utils": logging.CRITICAL,  # tracebacks of SQLAlchemy; the caller reports the error
    "mlflow.pyfunc": logging.WARNING,  # announces that it runs the input example
    "urllib3.connectionpool": logging.ERROR,  # one line per retry; the caller reports the outage
}


def connect(uri: str) -> Any:
    """Return an `MlflowClient` for `uri` with short retries. MLflow is imported here because it takes seconds.

    Raises OSError for a SQLite file that cannot be opened, which MLflow would try for two minutes.
    """
    database = sqlite_file(uri)
    if database is not None:
        _require_access(database)
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    # Otherwise MLflow prints the address of each run with the user and password of its URI.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    from mlflow import MlflowClient

    for logger, level in _LOG_LEVELS.items():
        logging.getLogger(logger).setLevel(level)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _require_access(database: Path) -> None:
    """Raise OSError if a database cannot be read, or not be made where there is none."""
    if database.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(database))
    place, right = database, os.R_OK
    while not place.exists():  # raises PermissionError below a closed folder
        place, right = place.parent, os.W_OK | os.X_OK
    if not os.access(place, right):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))


@contextmanager
def ignoring(code: str) -> Iterator[None]:
    """Ignore the MLflow error with this code in the block."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != code:
            raise
