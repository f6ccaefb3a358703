"""Exchange checkpoints and notices of preemption with Ray Train.

Each checkpoint is reported to Ray Train with its metrics (`ray.train.report`), so that `Result`, callbacks and
`ray.train.get_all_reported_checkpoints` have it. Its format stays ours: one checkpoint serves any number of workers
and any engine, its blobs are named by their content, and each is verified when it is read. Ray Train has a folder per
checkpoint in the format of the engine, which the next group can read only with as many workers and the same engine.

Ray Train refuses a checkpoint outside its own folder, and advises to report a pointer. So for each of ours there is a
folder that holds `checkpoint.json` with its URI. Ray Train never opens nor deletes an object of our store.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from pathlib import Path

import ray.exceptions
import ray.train
from ray.train.collective import broadcast_from_rank_zero

from orchestrator.events import CheckpointWritten, NodesDraining
from orchestrator.masking import without_password

log = logging.getLogger(__name__)

POINTER = "checkpoint.json"
SYNCHRONIZE_SECONDS = (1.0, 10.0)
COST_LIMIT = 0.01
"""Largest share of the time that barriers may take, as long as they are less than ten seconds apart."""


class RaySession:
    """What one worker exchanges with Ray Train.

    Both reports and notices are barriers for the group. So all workers make them after the same step, about one second
    after the one before, or up to ten where Ray's actors are slow. Worker 0 chooses that step from its pace.
    """

    def __init__(self, run_uri: str) -> None:
        """Open the session of a worker whose run is stored at `run_uri`."""
        self._run_uri = run_uri
        self._written: CheckpointWritten | None = None
        self._step: int | None = None
        self._next_step = 0
        self._time = time.monotonic()
        self._cost = 0.0

    def add_checkpoint(self, written: CheckpointWritten) -> None:
        """Report this checkpoint next time; of several written since the time before, the newest is reported."""
        self._written = written

    def synchronize(self, step: int) -> NodesDraining | None:
        """Return Ray Train's notice that nodes of the group leave, and report a new checkpoint, if it is time.

        Every worker calls this after each step.
        """
        if step < self._next_step:
            return None
        began = time.monotonic()
        info = ray.train.get_preemption_info()
        has_checkpoint, self._next_step = broadcast_from_rank_zero(
            (self._written is not None, step + self._steps_until_next(step))
        )
        if has_checkpoint:
            self._report(step)
        self._cost = time.monotonic() - began
        return info and nodes_draining(info, time.time())

    def finish(self) -> None:
        """Report the last checkpoint; every worker calls this after training.

        All is in the store by then, so that a worker that does not come only costs Ray Train's timeout.
        """
        if self._step is not None:
            try:
                self._report(self._step)
            except ray.exceptions.RayError as error:
                log.warning("Ray Train was not told of the last checkpoint: %s", error)

    def _steps_until_next(self, step: int) -> int:
        now = time.monotonic()
        pace = 0.0 if self._step is None else (step - self._step) / max(now - self._time, 1e-3)
        self._step, self._time = step, now
        shortest, longest = SYNCHRONIZE_SECONDS
        return max(1, int(pace * min(longest, max(shortest, self._cost / COST_LIMIT))))

    def _report(self, step: int) -> None:
        written, self._written = self._written, None
        if written is None:
            ray.train.report({"step": step})
            return
        uri = f"{without_password(self._run_uri)}/checkpoints/{written.checkpoint}.json"
        ray.train.report(
            {"step": written.step, "checkpoint": uri, **written.kept.get(written.checkpoint, {})},
            checkpoint=_pointer(written.checkpoint, uri),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
        )


def nodes_draining(info: ray.train.PreemptionInfo, now: float) -> NodesDraining:
    """Return Ray Train's notice as an event; `now`: Unix time."""
    seconds = None if info.deadline_ms is None else max(0.0, info.deadline_ms / 1000 - now)
    return NodesDraining(tuple(info.preempted_node_ids), tuple(info.preempted_ranks), seconds)


def reported_checkpoint() -> str:
    """Return the name of the newest checkpoint that Ray Train was told of before it restarted this group, or ""."""
    checkpoint = ray.train.get_checkpoint()
    return Path(checkpoint.path).name if checkpoint else ""


def _pointer(name: str, uri: str) -> ray.train.Checkpoint:
    """Return the folder of a checkpoint in Ray Train's own folder."""
    storage = ray.train.get_context().get_storage()
    folder = Path(storage.experiment_fs_path, name)
    with contextlib.suppress(OSError):  # the metrics name the URI too
        folder.mkdir(parents=True, exist_ok=True)
        (folder / POINTER).write_text(json.dumps({"uri": uri}))
    return ray.train.Checkpoint(folder, storage.storage_filesystem)
