"""Send MLflow a run that is known as a whole, such as an evaluation; until it has arrived it waits on disk.

    <spool>/finished/<name>/files/<path>    a file of the run
    <spool>/finished/<name>/run.json        a `FinishedRun`; written last

Sending it again changes nothing, so that it may be interrupted anywhere.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from orchestrator.errors import TrackingError
from orchestrator.masking import unmasked, without_password
from orchestrator.outputs import write_output
from orchestrator.records import read_record
from orchestrator.tracking import runs
from orchestrator.tracking.client import connect
from orchestrator.tracking.failures import tracking_errors

_FOLDER = "finished"
_BATCH = 900


@dataclass(frozen=True)
class FinishedRun:
    """All of a run but its files."""

    server: str
    """Without its password."""
    experiment: str
    name: str
    key: str
    """Tag whose value is the name; it finds the run."""
    tags: Mapping[str, str]
    params: Mapping[str, object]
    metrics: Mapping[str, float]
    time: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    """When it was measured, in milliseconds since 1970."""


@dataclass(frozen=True)
class SyncedRun:
    """What was sent of one run."""

    name: str
    """Name of the run, or its MLflow id."""
    sent: int
    """Number of steps, images and files sent."""
    problem: str = ""
    """Why something still waits."""


def keep(spool: Path, run: FinishedRun, files: Mapping[str, bytes]) -> None:
    """Store a run until `send_kept` has sent it. Raises OutputError."""
    folder = spool / _FOLDER / run.name
    for name, content in files.items():
        write_output(folder / "files" / name, content)
    write_output(folder / "run.json", json.dumps(asdict(run)).encode())


def send_kept(uri: str, spool: Path, *, of_all_servers: bool = False) -> Iterator[SyncedRun]:
    """Send the runs that wait for the server `uri`, or for any server; yield what was done for each."""
    for file in sorted((spool / _FOLDER).glob("*/run.json")):
        folder = file.parent
        where = f"What waits is in {folder}; delete it to give it up."
        try:
            lock = os.open(file, os.O_RDWR)
        except FileNotFoundError:
            continue  # another process has sent it
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not file.exists():
                continue
            run = read_record(FinishedRun, file.read_bytes())
            if not of_all_servers and run.server != without_password(uri):
                continue
            yield SyncedRun(run.name, _send(unmasked(run.server, uri), run, folder / "files"))
            shutil.rmtree(folder)
        except BlockingIOError:
            continue  # another process is sending it
        except TrackingError as error:
            yield SyncedRun(folder.name, 0, f"{error} {where}")
        except (ValueError, OSError) as error:
            yield SyncedRun(folder.name, 0, f"{file} cannot be read ({error}). {where}")
        finally:
            os.close(lock)


def _send(uri: str, run: FinishedRun, files: Path) -> int:
    """Send a run and its files; return the number of records. Raises TrackingError."""
    known = runs.find_run(uri, run.key, run.name, run.experiment)
    if known is not None and known.finished:
        return 0
    run_id = runs.start_run(
        uri,
        run.experiment,
        run.name,
        {**run.tags, run.key: run.name},
        run.params,
        resume_id=known.id if known else None,
    )
    with tracking_errors(uri):
        from mlflow.entities import Metric

        client = connect(uri)
        there = client.get_run(run_id).data.metrics
        new = [Metric(name, value, run.time, 0) for name, value in run.metrics.items() if name not in there]
        for start in range(0, len(new), _BATCH):
            client.log_batch(run_id, metrics=new[start : start + _BATCH])
        client.log_artifacts(run_id, str(files))
    runs.end_run(uri, run_id, "FINISHED")
    return 1 + sum(1 for path in files.rglob("*") if path.is_file())
