"""Runs in MLflow: the driver opens and ends them, rank 0 reports from the background.

    driver    start_run ──────────────────────────────── log_artifacts ── end_run
    rank 0        Tracker.metrics, .image ─► journal on disk ─► sender thread ─► MLflow

Tracking never hurts training. A call of a `Tracker` appends to a local file and returns; it does not wait for
the server and does not raise. A thread sends what the journal holds. While the server is away the journal
grows and the thread tries again; what a process could not send before it ended is sent by the next process of
the same run, or by `sync`.

A (metric, step) is recorded once. A run that resumes from step 500 after dying at 540 walks through 501 to
540 again. Those numbers are equal by construction (to rounding, where the number of workers changed), MLflow
does not replace a value, and two values at one step would draw a zigzag: so the first recording stands, and
the sender leaves out the steps that the server holds. For the same reason a journal may be replayed twice.

Each store is given by its URI; nothing here reads or sets MLflow's global state.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.errors import TrackingError
from orchestrator.tracking.uri import artifact_folder, sqlite_file, without_password

log = logging.getLogger(__name__)


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

_NOISY = {
    "alembic": logging.WARNING,  # the schema's migrations, one line each
    "mlflow.store.db.utils": logging.WARNING,
    "mlflow.pyfunc": logging.WARNING,  # that it tries the example
    "urllib3.connectionpool": logging.ERROR,  # each retry; the outage itself is ours to report
}


# ---------------------------------------------------------------------------------------------- where


# --------------------------------------------------------------------------------------------- driver


def start_run(
    uri: str,
    experiment: str,
    name: str,
    tags: Mapping[str, str],
    params: Mapping[str, object],
    resume_id: str | None = None,
) -> str:
    """Open a run and return its id; with `resume_id`, reopen that run.

    Parameters are written once, at creation: MLflow refuses to change one. Creates the SQLite schema and the
    experiment where they do not exist; no other function does. Raises TrackingError.
    """
    with _errors(uri), _sole_creator(uri):
        client = connect(uri)
        if resume_id is not None:
            client.update_run(resume_id, status="RUNNING")
            for key, value in tags.items():
                client.set_tag(resume_id, key, value)
            return resume_id
        run_id = client.create_run(
            _experiment(client, uri, experiment), run_name=name, tags=dict(tags)
        ).info.run_id
        items = list(params.items())
        for start in range(0, len(items), 100):  # MLflow takes 100 at a time
            client.log_batch(run_id, params=[_param(key, value) for key, value in items[start : start + 100]])
    return str(run_id)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Return nested values as parameters of a run: one level, names joined by dots."""
    found: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def end_run(uri: str, run_id: str, status: str) -> None:
    """End a run as FINISHED, FAILED or KILLED. Raises TrackingError."""
    with _errors(uri):
        connect(uri).set_terminated(run_id, status=status)


def is_finished(uri: str, run_id: str) -> bool:
    """Return whether a run ended well. Raises TrackingError."""
    with _errors(uri):
        return bool(connect(uri).get_run(run_id).info.status == "FINISHED")


def run_tags(uri: str, run_id: str) -> dict[str, str] | None:
    """Return the tags of a run, None when there is no such run. Raises TrackingError."""
    with _errors(uri):
        from mlflow.exceptions import MlflowException

        try:
            return dict(connect(uri).get_run(run_id).data.tags)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None


def log_artifacts(uri: str, run_id: str, files: Mapping[str, bytes | Path]) -> None:
    """Store files with a run: artifact path to contents or local file. Raises TrackingError."""
    with tempfile.TemporaryDirectory(prefix="mirage-artifacts-") as folder:
        for place, source in files.items():
            target = Path(folder, place)
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(source, bytes):
                target.write_bytes(source)
            else:
                shutil.copyfile(source, target)
        with _errors(uri):
            connect(uri).log_artifacts(run_id, folder)


def find_run(uri: str, experiment: str, key: str, value: str) -> str | None:
    """Return the newest run of `experiment` whose tag `key` is `value`, or None. Raises TrackingError."""
    with _errors(uri), _sole_creator(uri):
        client = connect(uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return None
        runs = client.search_runs(
            [found.experiment_id],
            f"tags.`{key}` = '{value}'",
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )
    return str(runs[0].info.run_id) if runs else None


def find_params(uri: str, key: str, value: str) -> tuple[str, dict[str, str]] | None:
    """Return tag `key` and the parameters of the newest run, of any experiment, that is called `value`.

    It is called so if its tag `key` or its MLflow id is `value`; None if no run is. Raises TrackingError.
    """
    with _errors(uri):
        client = connect(uri)
        experiments = [found.experiment_id for found in client.search_experiments()]
        for query in (f"tags.`{key}` = '{value}'", f"attributes.run_id = '{value}'"):
            newest = ["attributes.start_time DESC"]
            for run in client.search_runs(experiments, query, order_by=newest, max_results=1):
                if key in run.data.tags:
                    return str(run.data.tags[key]), dict(run.data.params)
    return None


def find_id(uri: str, key: str, value: str) -> str | None:
    """Return the MLflow id of the newest run whose tag `key`, or whose own id, is `value`. Raises TrackingError."""
    with _errors(uri), _sole_creator(uri):
        client = connect(uri)
        experiments = [found.experiment_id for found in client.search_experiments()]
        for query in (f"tags.`{key}` = '{value}'", f"attributes.run_id = '{value}'"):
            newest = ["attributes.start_time DESC"]
            for run in client.search_runs(experiments, query, order_by=newest, max_results=1):
                return str(run.info.run_id)
    return None


def connect(uri: str) -> Any:
    """Return an MLflow client for `uri`, with short retries. Importing MLflow takes seconds, so only here."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for noisy, level in _NOISY.items():
        logging.getLogger(noisy).setLevel(level)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def one_line(error: Exception) -> str:
    """Return the first line of an MLflow error, short enough for a terminal."""
    text = without_password((str(error) or type(error).__name__).splitlines()[0])
    if "failed with exception" in text:  # MLflow's words around whatever its HTTP client raised
        return "no answer."
    return text if len(text) <= 200 else text[:197] + "..."


def _experiment(client: Any, uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    database = sqlite_file(uri)
    place = artifact_folder(database).as_uri() if database else None
    return str(client.create_experiment(name, artifact_location=place))


def _param(key: str, value: object) -> Any:
    from mlflow.entities import Param

    return Param(key, str(value))


@contextmanager
def _errors(uri: str) -> Iterator[None]:
    """Turn what MLflow, its HTTP client and its database raise into one line."""
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(
            f"MLflow at {without_password(uri)}: {one_line(error)} "
            "Start that server, or unset MLFLOW_TRACKING_URI and track.uri to track into a local file."
        ) from error


@contextmanager
def _sole_creator(uri: str) -> Iterator[None]:
    """Let one process at a time create schema and experiment: MLflow's migrations race."""
    database = sqlite_file(uri)
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# --------------------------------------------------------------------------------------------- rank 0
