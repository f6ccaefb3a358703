"""Write checkpoints of a run, and load the newest one."""

from __future__ import annotations

import time
from collections.abc import Mapping

from torch import Tensor

from orchestrator.config.identity import run_id
from orchestrator.config.schedule import total_steps
from orchestrator.config.schema import Checkpoint, Job
from orchestrator.errors import TrainingError
from orchestrator.events import CheckpointWritten, Metrics, Resumed
from orchestrator.models import network
from orchestrator.training.checkpoint import Checkpoints, CheckpointState, Retention, RunIdentity
from orchestrator.training.driver import Driver
from orchestrator.training.engines.base import Engine
from orchestrator.training.finite import require_finite_weights
from orchestrator.training.run_state import TrainingRun
from shards.dataset import Dataset
from shards.store import Store
from shards.stream import TrainStream


def open_checkpoints(job: Job, dataset: Dataset, store: Store, code_version: str) -> Checkpoints:
    """Return the checkpoints of the job's run in `store`, the run's folder."""
    return Checkpoints(
        store,
        RunIdentity(run_id(job, dataset.digests), tuple(dataset.digests)),
        keep=retention(job.checkpoint),
        code_version=code_version,
        model_source=network.source_digest(job.model),
        may_change_model=job.checkpoint.if_model_changed == "continue",
        header=network.header(job.model),
    )


def retention(rule: Checkpoint) -> Retention:
    """Return the retention rules of the section `checkpoint`."""
    return Retention(rule.keep, rule.keep_best, rule.metric, rule.order == "max", rule.keep_hours)


def save(run: TrainingRun, checkpoints: Checkpoints, driver: Driver) -> None:
    """Take a snapshot, which worker 0 writes in the background, and report the time that training was blocked.

    Raises TrainingError if the weights are not finite or too many steps in a row were skipped, so that the checkpoints
    before it are not replaced.
    """
    run.skipped.require_finite_steps(run.step)
    began = time.monotonic()  # the line before waits for steps that the device still computes
    if run.engine.rank != 0 and not run.engine.sharded:
        return
    optimizer = run.engine.optimizer_state(run.model, run.optimizer)
    with run.engine.full_params(run.model):
        require_finite_weights(run.model, run.step)
        model = _snapshot(run.model.state_dict())
    if run.engine.rank != 0:
        return
    finish_saving(checkpoints, driver)
    tensors = {"model": model, "optimizer": optimizer}
    if run.ema is not None:
        tensors["ema"] = _snapshot(run.ema.network.state_dict())
    checkpoints.save(
        CheckpointState(
            step=run.step,
            position=run.position,
            skipped_steps=run.skipped.total(),
            tensors=tensors,
            metrics=run.validation,
            world_size=run.engine.world_size,
            gradient_scale=run.engine.loss_scale.state() if run.engine.loss_scale else {},
            plateau=run.plateau,
        )
    )
    values = {"perf/checkpoint_stall_seconds": time.monotonic() - began}
    if checkpoints.write_seconds:
        values["perf/checkpoint_write_seconds"] = checkpoints.write_seconds  # of the previous checkpoint
    driver.emit(Metrics(run.step, values))


def finish_saving(checkpoints: Checkpoints, driver: Driver) -> None:
    """Wait until the newest checkpoint is in the store, and report it."""
    if written := checkpoints.wait():
        driver.emit(CheckpointWritten(written.step, written.name, written.kept))


def load_newest(
    job: Job, stream: TrainStream, engine: Engine, checkpoints: Checkpoints, driver: Driver
) -> CheckpointState | None:
    """Return the newest whole checkpoint, None if there is none; worker 0 chooses it for all workers."""
    start_over = job.checkpoint.if_all_damaged == "restart"
    found = checkpoints.load_newest(start_over=start_over) if engine.rank == 0 else None
    name = engine.broadcast_from_rank0(found[0] if found else "")
    if not name:
        return None
    state = found[1] if found else checkpoints.load(name)
    total = total_steps(job.train, stream.order.steps_per_epoch)
    if state.step > total:
        raise TrainingError(
            f"checkpoint {name} is at step {state.step}, but this job ends at step {total}. It was not written by "
            "this job: move its record away."
        )
    if state.position != stream.stages.position_at(state.step):
        raise TrainingError(
            f"checkpoint {name} is at sample {state.position}, but step {state.step} of this job begins at "
            f"{stream.stages.position_at(state.step)}. It was not written by this job."
        )
    if engine.rank == 0:
        driver.emit(Resumed(name, state.step))
    return state


def _snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
