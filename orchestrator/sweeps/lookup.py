"""Which sweep somebody means, and its winning job as a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from orchestrator.config.loader import job_from_mapping
from orchestrator.config.sweep_schema import SweepJob
from orchestrator.errors import SweepError, TrackingError
from orchestrator.paths import below, home
from orchestrator.sweeps.best_trial import as_file
from orchestrator.sweeps.event_log import Event, job_of, read
from orchestrator.sweeps.trial_runner import SWEEP_ID_TAG
from orchestrator.sweeps.trial_table import Trial, table_of
from orchestrator.tracking import runs
from orchestrator.tracking.uri import resolve_tracking_uri, sqlite_file, without_password
from shards.store import open_store


@dataclass(frozen=True)
class NamedSweep:
    """A sweep that was found, with all that its book holds."""

    name: str
    job: SweepJob
    events: Sequence[Event]


def find_sweep(run: str) -> NamedSweep:
    """Return the sweep of that id, of that name if only one has it here, or in that folder. Raises SweepError."""
    folder = run.rstrip("/") if "/" in run else _folder(run)
    store = open_store(folder)
    events = read(store)
    job = job_from_mapping(yaml.safe_load(job_of(store, events)))
    assert isinstance(job, SweepJob), "only sweeps are submitted to a book"
    return NamedSweep(folder.rpartition("/")[2], job, events)


def export_job(found: NamedSweep, out: Path, number: int | None = None) -> str:
    """Write the job of the best trial, or of trial `number`, to `out`; return what was done. Raises SweepError."""
    table = table_of(found.events)
    trial: Trial | None = table.best()
    if number is not None:
        trial = next((one for one in table.trials if one.number == number), None)
    if trial is None:
        told = "no trial has finished" if number is None else f"there is no trial {number}"
        raise SweepError(
            f"sweep {found.name}: {told}; it has {len(table.trials)}. See: mirage sweep report {found.name}"
        )
    if out.exists():
        raise SweepError(f"{out} exists; nothing is overwritten. Give another --out, or remove it.")
    name = re.sub(r"[^a-z0-9._-]", "-", out.stem.lower()).lstrip("._-") or f"{found.name}-winner"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(as_file(found.job, found.name, trial, name[:63]))
    out.chmod(0o755)
    return f"{out}: trial {trial.number} of {found.name}. See what it amounts to: mirage plan {out}"


def _folder(run: str) -> str:
    here = sorted(folder.name for folder in (home() / "sweeps").glob(f"{run}-*") if folder.is_dir())
    ids = [name for name in here if re.fullmatch(re.escape(run) + "-[0-9a-f]{10}", name)]
    if len(ids) > 1:
        raise SweepError(f"{run}: several sweeps have that name here: {', '.join(ids)}. Name one of them.")
    name = ids[0] if ids else run
    uri = resolve_tracking_uri()
    database = sqlite_file(uri)
    try:
        found = (
            None
            if database is not None and not database.is_file()
            else runs.find_run(uri, SWEEP_ID_TAG, name)
        )
    except TrackingError as error:
        raise SweepError(f"{run}: {error}") from error
    if found is None or SWEEP_ID_TAG not in found.tags or "storage" not in found.params:
        raise SweepError(
            f"{run}: no sweep of that id is tracked at {without_password(uri)}. "
            "Name it by its folder: STORAGE/sweeps/ID."
        )
    return f"{below(found.params['storage'], 'sweeps')}/{found.tags[SWEEP_ID_TAG]}"
