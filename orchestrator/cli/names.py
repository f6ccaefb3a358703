"""Names of runs and models on this machine, for the shell's completion: from files alone, without MLflow."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing

from orchestrator.paths import FOLDER, home
from orchestrator.run_files import LOCATION
from orchestrator.tracking.uri import resolve_tracking_uri, sqlite_file

_MODELS = """
    select 'models:/' || name || '/' || version from model_versions where current_stage != 'Deleted_Internal'
    union select 'models:/' || name || '@' || alias from registered_model_aliases
"""


def model_names() -> list[str]:
    """Return models:/NAME/VERSION and models:/NAME@ALIAS of the project's own database; [] where it has none.

    A server is not asked: it may take seconds, and the shell waits.
    """
    database = sqlite_file(resolve_tracking_uri())
    if database is None or not database.is_file():
        return []
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=1)) as connection:
            return sorted(name for (name,) in connection.execute(_MODELS))
    except sqlite3.Error:
        return []


def run_folders() -> list[str]:
    """Return the folders of runs in the project's default storage, as paths that `absolute_uri` takes."""
    base = home().parent
    found = (home() / "folder" / "runs").glob("*") if home().name == FOLDER else base.glob("runs/*")
    return sorted(os.path.relpath(path, base) for path in found if path.is_dir())


def run_ids() -> list[str]:
    """Return the ids of the runs that drivers of this project's folder have started."""
    return sorted(file.parent.name for file in (home() / "runs").glob(f"*/{LOCATION}"))
