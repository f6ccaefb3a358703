"""Find a sweep by its id, its name or its folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.config.loader import job_from_yaml
from orchestrator.config.sweep_schema import SweepJob
from orchestrator.errors import SweepError, TrackingError
from orchestrator.masking import without_password
from orchestrator.paths import below, home
from orchestrator.sweeps.event_log import newest_job, read_events
from orchestrator.sweeps.event_schema import SweepEvent
from orchestrator.sweeps.trial_tracking import SWEEP_ID_TAG
from orchestrator.tracking import runs
from orchestrator.tracking.uri import resolve_tracking_uri, sqlite_file
from shards.store import open_store


@dataclass(frozen=True)
class StoredSweep:
    """A sweep with its newest job and its events."""

    name: str
    job: SweepJob
    events: Sequence[SweepEvent]


def find_sweep(run: str) -> StoredSweep:
    """Return the sweep with that id, with that name if it is unique here, or in that folder. Raises SweepError."""
    folder = run.rstrip("/") if "/" in run else _folder(run)
    store = open_store(folder)
    events = read_events(store)
    job = job_from_yaml(newest_job(store, events), f"{store.uri}: the newest job")
    if not isinstance(job, SweepJob):
        raise SweepError(f"{store.uri}: its newest job is of kind {job.kind}, and no sweep.")
    return StoredSweep(folder.rpartition("/")[2], job, events)


def _folder(run: str) -> str:
    """Return the folder in the store of the sweep with that id or name."""
    here = sorted(folder.name for folder in (home() / "sweeps").glob(f"{run}-*") if folder.is_dir())
    ids = [name for name in here if re.fullmatch(re.escape(run) + "-[0-9a-f]{10}", name)]
    if len(ids) > 1:
        raise SweepError(
            f"{run}: several sweeps here have that name: {', '.join(ids)}. Give one of these ids."
        )
    name = ids[0] if ids else run
    uri = resolve_tracking_uri()
    database = sqlite_file(uri)
    try:
        exists = database is None or database.is_file()
        found = runs.find_run(uri, SWEEP_ID_TAG, name) if exists else None
    except TrackingError as error:
        raise SweepError(f"{run}: {error}") from error
    if found is None or SWEEP_ID_TAG not in found.tags or "storage" not in found.params:
        raise SweepError(
            f"{run}: no sweep with that id is tracked at {without_password(uri)}. "
            "Give its folder: STORAGE/sweeps/ID."
        )
    return f"{below(found.params['storage'], 'sweeps')}/{found.tags[SWEEP_ID_TAG]}"
