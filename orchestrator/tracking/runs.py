"""Create, find and end runs in MLflow. Rank 0 of a training job logs to them by `tracking.background`."""

from __future__ import annotations

import fcntl
import getpass
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.masking import masked
from orchestrator.tracking.client import connect, ignoring
from orchestrator.tracking.failures import tracking_errors
from orchestrator.tracking.uri import artifact_folder, sqlite_file
from orchestrator.version import git_commit

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Make MLflow's page show an experiment as model development; without it, some open as GenAI projects."""
STARTED_TAG = "mirage.started"
"""When a process last started or resumed a run, in milliseconds since 1970."""
DESCRIPTION_TAG = "mlflow.note.content"
"""Holds the description of a run on MLflow's page, in Markdown."""


@dataclass(frozen=True)
class TrackedRun:
    """A run as MLflow holds it."""

    id: str
    """MLflow's run id."""
    finished: bool
    """Whether its status is FINISHED."""
    tags: Mapping[str, str]
    params: Mapping[str, str]


def start_run(
    uri: str,
    experiment: str,
    name: str,
    tags: Mapping[str, str],
    params: Mapping[str, object],
    resume_id: str | None = None,
) -> str:
    """Create a run and return its id; with `resume_id`, reopen that run and update its tags.

    A parameter keeps its first value, because MLflow refuses to change it; those that a failed start left out are
    added. Creates the SQLite schema and the experiment where they are missing. Raises TrackingError.
    """
    tags = {**tags, STARTED_TAG: str(time.time_ns() // 1_000_000)}
    with tracking_errors(uri), _schema_lock(uri):
        client = connect(uri)
        from mlflow.entities import Param, RunTag

        if resume_id is not None:
            run_id = resume_id
            client.update_run(run_id, status="RUNNING")
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
            known = client.get_run(run_id).data.params
        else:
            experiment_id = _experiment_id(client, uri, experiment)
            run_id, known = (
                str(client.create_run(experiment_id, run_name=name, tags=dict(tags)).info.run_id),
                {},
            )
        items = [Param(key, str(value)) for key, value in params.items() if key not in known]
        for start in range(0, len(items), 100):  # MLflow takes at most 100 per request
            client.log_batch(run_id, params=items[start : start + 100])
    return run_id


def source_tags(name: str) -> dict[str, str]:
    """Return the tags that MLflow's page shows as source and user of a run; `name` says what started it."""
    tags = {"mlflow.source.name": name, "mlflow.source.type": "JOB", "mlflow.user": _user()}
    if commit := git_commit():
        tags["mlflow.source.git.commit"] = commit
    return tags


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no name for this user id, as in some containers
        return "unknown"


def flat_params(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Return nested values as parameters of a run, without passwords: one level, keys joined by dots."""
    flat: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flat_params(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = masked(value)
    return flat


def end_run(uri: str, run_id: str, status: str) -> None:
    """End a run as FINISHED, FAILED or KILLED. Raises TrackingError."""
    with tracking_errors(uri):
        connect(uri).set_terminated(run_id, status=status)


def is_finished(uri: str, run_id: str) -> bool:
    """Return whether the status of a run is FINISHED. Raises TrackingError."""
    with tracking_errors(uri):
        return _tracked(connect(uri).get_run(run_id)).finished


def find_run(uri: str, key: str, value: str, experiment: str | None = None) -> TrackedRun | None:
    """Return the newest run whose tag `key` is `value`, or None. Raises TrackingError.

    Without `experiment`, all experiments are searched, and `value` may also be an MLflow run id.
    """
    with tracking_errors(uri), _schema_lock(uri):
        client = connect(uri)
        if experiment is None:
            experiments = client.search_experiments()
            filters = [f"tags.`{key}` = '{value}'", f"attributes.run_id = '{value}'"]
        else:
            found = client.get_experiment_by_name(experiment)
            experiments = [found] if found is not None else []
            filters = [f"tags.`{key}` = '{value}'"]
        ids = [one.experiment_id for one in experiments]
        for query in filters if ids else []:
            for run in client.search_runs(ids, query, order_by=["attributes.start_time DESC"], max_results=1):
                return _tracked(run)
    return None


def get_run(uri: str, run_id: str) -> TrackedRun | None:
    """Return the run with this MLflow id, None if there is none. Raises TrackingError."""
    with tracking_errors(uri), ignoring("RESOURCE_DOES_NOT_EXIST"):
        return _tracked(connect(uri).get_run(run_id))
    return None  # type: ignore[unreachable]  # mypy does not know that `ignoring` does


def log_artifacts(uri: str, run_id: str, files: Mapping[str, bytes | Path]) -> None:
    """Store files with a run: artifact path to contents or local file. Raises TrackingError."""
    with tempfile.TemporaryDirectory(prefix="mirage-artifacts-") as folder:
        for path, source in files.items():
            target = Path(folder, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(source, bytes):
                target.write_bytes(source)
            else:
                shutil.copyfile(source, target)
        with tracking_errors(uri):
            connect(uri).log_artifacts(run_id, folder)


def _tracked(run: Any) -> TrackedRun:
    data = run.data
    return TrackedRun(str(run.info.run_id), run.info.status == "FINISHED", dict(data.tags), dict(data.params))


def _experiment_id(client: Any, uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        for key in EXPERIMENT_TAGS.keys() - found.tags.keys():  # created by MLflow or by an earlier release
            client.set_experiment_tag(found.experiment_id, key, EXPERIMENT_TAGS[key])
        return str(found.experiment_id)
    database = sqlite_file(uri)
    location = artifact_folder(database).as_uri() if database else None
    return str(client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS))


@contextmanager
def _schema_lock(uri: str) -> Iterator[None]:
    """Let one process at a time create a SQLite schema and its experiments: MLflow's migrations race."""
    database = sqlite_file(uri)
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
