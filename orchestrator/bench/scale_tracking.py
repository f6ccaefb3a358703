"""Operations of `mirage bench scale` that use MLflow: tracking a run, resuming it, finding a version of a model.

Client and SQLite store are in one process, so the costs include those of the server.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from orchestrator.registry import versions
from orchestrator.tracking import runs
from orchestrator.tracking.background import Tracker, sync
from orchestrator.tracking.client import connect
from orchestrator.tracking.journal import Journal

SAMPLES_OF_A_LINE = 250
"""Size for each line of a run that is tracked."""
SAMPLES_OF_A_VERSION = 5000
"""Size for each version of a model."""
_VALUES = {f"metric/{index}": float(index) for index in range(10)}
_LOOK_UPS = 20


def track_lines(size: int, folder: Path) -> Mapping[str, float]:
    """Send a line of ten values to MLflow for each SAMPLES_OF_A_LINE of `size`, then resume the run for ten more."""
    uri, spool, lines = _store(folder), folder / "spool", max(10, size // SAMPLES_OF_A_LINE)
    run_id = runs.start_run(uri, "scale", "run", {}, {})
    journal = Journal.create(spool, run_id)

    def track() -> None:
        for step in range(lines):
            journal.add(step, _VALUES)
        journal.close()
        sync(uri, run_id, spool)

    def resume() -> None:
        tracker = Tracker(uri, run_id, spool)
        for step in range(lines, lines + 10):
            tracker.metrics(step, _VALUES)
        assert tracker.close(600)

    return {"a line [CPU ms]": 1000 * _seconds(track) / lines, "resume [CPU ms]": 1000 * _seconds(resume)}


def find_version(size: int, folder: Path) -> Mapping[str, float]:
    """Find a version of a model that has one for each SAMPLES_OF_A_VERSION of `size`."""
    uri, count = _store(folder), max(2, size // SAMPLES_OF_A_VERSION)
    client = connect(uri)
    run_id = runs.start_run(uri, "scale", "run", {}, {})
    client.create_registered_model("scale")
    for number in range(count):
        client.create_model_version("scale", "file:///nowhere", run_id, tags={versions.KEY_TAG: f"{number}"})
    client.set_registered_model_alias("scale", "candidate", "1")

    def look_up() -> None:
        for _ in range(_LOOK_UPS):
            versions.describe("models:/scale@candidate", uri)

    return {"look-up [CPU ms]": 1000 * _seconds(look_up) / _LOOK_UPS}


def _store(folder: Path) -> str:
    """Return the address of a store in the folder that has its tables."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    runs.start_run(uri, "scale", "first", {}, {})
    return uri


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start
