"""The training loop; it is the same on one CPU and on many GPUs.

    resume    the newest valid checkpoint, or step 0
    repeat    step = micro_batches x (forward, loss share, backward), clip, update, average
              periodically: log, validate, checkpoint
              if asked to stop or to restart: checkpoint and exit
    end       evaluate the held-out photographs, write the weights and the result

Every worker runs this function. Workers differ in their share of each batch, and only worker 0 writes. A run is
identified by a hash of its job and data, so a job that is submitted again resumes it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice

from orchestrator.config.identity import run_id
from orchestrator.config.job_types import JobOutcome
from orchestrator.config.schedule import total_steps
from orchestrator.config.schema import Job
from orchestrator.data import datasets
from orchestrator.errors import DamagedResultError, NewOwnerError, SupersededError
from orchestrator.evaluation.scores import as_records
from orchestrator.models import network
from orchestrator.run_files import DEGRADATIONS, RESULT, RETENTION_RULE, read_result
from orchestrator.signals import stop_requested
from orchestrator.training.determinism import deterministic_algorithms
from orchestrator.training.driver import ControlSignal, Driver
from orchestrator.training.engines.base import Engine
from orchestrator.training.fencing import Turn, fenced, new_claim, require_newest, write_claim
from orchestrator.training.finite import require_finite_scores, require_finite_weights, require_taken_steps
from orchestrator.training.monitor import Monitor
from orchestrator.training.run_state import TrainingRun, compile_blocks, record_steps, start
from orchestrator.training.saving import finish_saving, load_newest, open_checkpoints, retention, save
from orchestrator.training.skipped_steps import MAX_CONSECUTIVE_SKIPS
from orchestrator.training.step import train_step
from orchestrator.training.user_networks import UsageReport
from orchestrator.training.validation import evaluate, validate
from shards.dataset import Dataset
from shards.errors import ObjectExistsError
from shards.ledger import SampleLedger, next_attempt
from shards.store import Store
from shards.store.checked import record_digest
from shards.stream import Batch, TrainStream

log = logging.getLogger(__name__)


def train(
    job: Job,
    dataset: Dataset,
    store: Store,
    engine: Engine,
    driver: Driver,
    code_version: str,
    turn: Turn | None = None,
) -> JobOutcome:
    """Train `job` until its end or until a stop or restart is requested; all results go to `store`, its folder.

    Workers that come before others by their `turn` write nothing more: for them the run is stopped if a new driver owns
    it, and restarting if their own driver has replaced them.
    """
    stream = datasets.train_stream(dataset, job)
    total = total_steps(job.train, stream.order.steps_per_epoch)
    if store.exists(RESULT):
        return JobOutcome("finished", total, total)
    claim = engine.broadcast_from_rank0(new_claim(store, turn) if engine.rank == 0 else "")
    with deterministic_algorithms(job.train.deterministic):
        try:
            require_newest(store, claim)
            if engine.rank == 0:
                write_claim(store, claim)
            return _train(job, dataset, stream, fenced(store, claim), engine, driver, code_version, total)
        except SupersededError as error:
            log.warning("%s", error)
            return JobOutcome("stopped" if isinstance(error, NewOwnerError) else "restarting", 0, total)


def _train(
    job: Job,
    dataset: Dataset,
    stream: TrainStream,
    store: Store,
    engine: Engine,
    driver: Driver,
    code_version: str,
    total: int,
) -> JobOutcome:
    checkpoints = open_checkpoints(job, dataset, store, code_version)
    run = start(job, engine, stream, store, load_newest(job, stream, engine, checkpoints, driver))
    if job.train.compile == "blocks":
        compile_blocks(run, driver)
    if job.train.cuda_graph == "auto":
        record_steps(run, driver)
    ledger = _open_ledger(run, store)
    monitor, usage = Monitor(run, total, store, driver), UsageReport(run, total)

    for micro_batches in monitor.timed(_steps(stream, run, total)):
        _record_samples(run, micro_batches, ledger)
        monitor.step_taken(train_step(run, micro_batches))
        usage.step_taken(driver)

        last = run.step == total
        if run.step % MAX_CONSECUTIVE_SKIPS == 0:
            run.skipped.require_finite_steps(run.step)
        if last or run.step % job.track.every_steps == 0:
            monitor.log()
        if last or run.step % job.validation.every_steps == 0:
            validate(run, dataset, driver)
        signal = ControlSignal(engine.all_reduce_max(driver.control_signal(run.step)))
        if last or signal or run.step % job.checkpoint.every_steps == 0:
            if ledger is not None:
                ledger.flush()
                # Wait until all workers have flushed the samples of this checkpoint.
                engine.all_reduce_any(False)
            save(run, checkpoints, driver)
        if signal and not last:
            finish_saving(checkpoints, driver)
            status = "stopped" if signal is ControlSignal.STOP else "restarting"
            return JobOutcome(status, run.step, total)

    finish_saving(checkpoints, driver)
    require_taken_steps(run.skipped.total(), run.step)
    run.graph = None  # frees its memory for whole photographs
    _finish(run, dataset, store)
    return JobOutcome("finished", run.step, total)


def _steps(stream: TrainStream, run: TrainingRun, total: int) -> Iterator[list[Batch]]:
    """Yield this worker's micro-batches of each remaining step."""
    end = run.stages.position_at(total)
    batches = stream.steps(run.position, run.engine.world_size, run.engine.rank, end, stop_requested)
    while micro_batches := list(islice(batches, run.job.train.micro_batches)):
        yield micro_batches


def _open_ledger(run: TrainingRun, store: Store) -> SampleLedger | None:
    """Return this worker's ledger if the job asks for one; worker 0 numbers the attempt for all workers."""
    if not run.job.data.ledger:
        return None
    attempt = run.engine.broadcast_from_rank0(str(next_attempt(store)) if run.engine.rank == 0 else "")
    return SampleLedger(store, int(attempt), run.engine.rank, run.engine.world_size)


def _record_samples(run: TrainingRun, micro_batches: Sequence[Batch], ledger: SampleLedger | None) -> None:
    """Record the samples that the step is about to consume, and count damaged ones that the stream left out."""
    for batch in micro_batches:
        if ledger is not None:
            ledger.record(run.step, batch)
        run.skipped_samples += len(batch.skipped)


def _finish(run: TrainingRun, dataset: Dataset, store: Store) -> None:
    """Evaluate, then write the weights and, as the last object, the result. Raises TrainingError if not finite."""
    model = run.evaluation_model()
    require_finite_weights(model, run.step)
    scores = evaluate(run, model, dataset)
    require_finite_scores(scores)
    if run.engine.rank != 0:
        return
    facts = {
        "run_id": run_id(run.job, dataset.digests),
        "recipe": run.job.recipe,
        "weights": "raw" if run.ema is None else "EMA",
        DEGRADATIONS: " ".join(run.job.data.mixture),
    }
    weights = network.dump(model, facts)
    key = f"weights/{hashlib.sha256(weights).hexdigest()}.safetensors"
    store.write(key, weights)
    throughput = run.clock.throughput(run.engine.world_size, run.engine.device)
    result = {
        "step": run.step,
        "positions": run.position,
        "weights": key,
        "averaged": run.ema is not None,
        "skipped_steps": run.skipped.total(),
        "scores": as_records(scores),
        RETENTION_RULE: asdict(retention(run.job.checkpoint)),
        "pace": throughput and asdict(throughput),
        "finished_unix": int(time.time()),
    }
    try:
        store.write(RESULT, json.dumps({**result, "sha256": record_digest(result)}, indent=1).encode())
    except ObjectExistsError:
        if not _has_result_of(store, run):
            raise
        log.warning("%s/%s was written by workers that these have replaced; it stays", store.uri, RESULT)


def _has_result_of(store: Store, run: TrainingRun) -> bool:
    """Return whether the stored result is of the same samples; time and speed in it may differ."""
    try:
        result = read_result(store, ("step", "positions"))
    except DamagedResultError:
        return False
    return (result["step"], result["positions"]) == (run.step, run.position)
