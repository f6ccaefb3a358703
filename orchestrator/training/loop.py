"""The run: one loop that reads the same on one CPU and on many GPUs.

    resume    the newest whole checkpoint, or step 0
    repeat    step = micro_batches x (forward, loss share, backward), clip, update, average
              once in a while: log, validate, checkpoint
              asked to stop, or to make way for another group of workers: checkpoint and leave
    end       checkpoint, judge the held-out photographs, write the weights and the result

Every worker runs this function. Workers differ in the share of each batch that they see, and worker 0 alone writes.
A run is told by its identity (job and data), so that resubmitting a job goes on with it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice

import torch
from torch import Tensor, nn

from mirage import MIRAGE, compile
from mirage.collective import Share
from mirage.loss import LossWeights, restoration_loss
from orchestrator.config.identity import run_id
from orchestrator.config.schedule import learning_rate, total_steps
from orchestrator.config.schema import Checkpoint, Job
from orchestrator.data import datasets
from orchestrator.errors import TrainingError
from orchestrator.evaluation.previews import comparison_sheet, validation_items
from orchestrator.evaluation.scores import (
    ImageScore,
    as_metrics,
    as_records,
    from_records,
    score_images,
    summarise,
)
from orchestrator.events import Image, LogMessage, Metrics, ProfileWritten, Resumed, Validation
from orchestrator.models import network
from orchestrator.models.network import Network
from orchestrator.planning.throughput import StepTimer, as_record
from orchestrator.run_files import RESULT, RULE
from orchestrator.training import initial_weights
from orchestrator.training.checkpoint import METRIC, Checkpoints, Identity, Retention, State
from orchestrator.training.determinism import repeatable
from orchestrator.training.driver import ControlSignal, Driver, JobOutcome
from orchestrator.training.engines.base import Engine, trainable
from orchestrator.training.loss_breakdown import attributed, attribution
from orchestrator.training.profiling import Profiling
from orchestrator.training.progress import ProgressMeter
from orchestrator.training.system_metrics import NodeMeter
from shards.crop_schedule import CropSchedule
from shards.dataset import Dataset
from shards.evaluation import EvalItem
from shards.ledger import SampleLedger, next_attempt
from shards.store import Store
from shards.stream import Batch, TrainStream

log = logging.getLogger(__name__)

HOPELESS = 100
"""Steps in a row without a finite gradient after which a run is given up."""


@dataclass
class Run:
    """The moving parts of a run on one worker."""

    job: Job
    engine: Engine
    model: Network
    """The plain model; its EMA twin is `averaged`."""
    called: nn.Module
    """The same model as the engine wrapped it."""
    optimizer: torch.optim.Optimizer
    weights: LossWeights
    averaged: Network | None
    steps_per_epoch: int
    stages: CropSchedule
    step: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    skipped_samples: int = 0
    """Damaged ones that this worker left out since it started."""
    validation: dict[str, float] = field(default_factory=dict)
    clock: StepTimer = field(default_factory=StepTimer)

    @property
    def position(self) -> int:
        """Samples that all workers have consumed: all there is to the state of the data."""
        return self.stages.position_at(self.step)

    def eagerly(self) -> AbstractContextManager[None]:
        """Return the context of all but training steps: photographs have many sizes, each compiled to be run once."""
        return compile.eagerly() if self.job.train.compile == "blocks" else nullcontext()

    def judged(self) -> Network:
        """Return the model that is validated, evaluated and registered; asked of all workers together."""
        if self.averaged is not None or not self.engine.sharded:
            return self.averaged or self.model
        # Workers judge different images, so that none may have to wait for a part that another holds.
        copy = network.make(self.job.model).to(self.engine.device)
        with self.engine.whole(self.model):
            copy.load_state_dict(self.model.state_dict())
        return copy


def train(
    job: Job, dataset: Dataset, store: Store, engine: Engine, driver: Driver, code_version: str
) -> JobOutcome:
    """Train `job` to its end, or until it is asked to stop, and leave everything in `store`, the run's own folder."""
    with repeatable(job.train.deterministic):
        return _train(job, dataset, store, engine, driver, code_version)


def _train(
    job: Job, dataset: Dataset, store: Store, engine: Engine, driver: Driver, code_version: str
) -> JobOutcome:
    stream = datasets.train_stream(dataset, job)
    identity = Identity(run_id(job, dataset.digests), tuple(dataset.digests))
    checkpoints = Checkpoints(
        store,
        identity,
        keep=_retention(job.checkpoint),
        code_version=code_version,
        header=network.header(job.model),
    )
    total = total_steps(job.train, stream.order.steps_per_epoch)
    if store.exists(RESULT):
        return JobOutcome("finished", total, total)
    run = start(job, engine, stream, store, _newest(stream, engine, checkpoints, driver))
    if job.train.compile == "blocks":
        _compile(run, driver)
    ledger = _ledger(run, store)

    progress = ProgressMeter(run.step, total)
    meter = NodeMeter.of_this_worker(engine.device)
    profiling = Profiling(job.profile, run.step, store) if job.profile and engine.rank == 0 else None
    since_logged: list[dict[str, Tensor]] = []
    stop_position = run.stages.position_at(total)
    batches = stream.steps(run.position, engine.world_size, engine.rank, stop_position)
    while micro_batches := list(islice(batches, job.train.micro_batches)):
        progress.data_arrived()
        _note(run, micro_batches, ledger)
        since_logged.append(train_step(run, micro_batches))
        progress.step_taken()
        run.clock.step_ended()

        due = run.step == total
        if profiling is not None and (trace := profiling.step_taken(run.step, last=due)):
            driver.emit(ProfileWritten(f"{store.uri}/{trace}"))
        if meter is not None and progress.is_time_to_look(job.track.system_metrics_seconds):
            driver.emit(Metrics(run.step, meter.look()))
        if due or run.step % job.track.every_steps == 0:
            _log(run, since_logged, progress, driver)
            since_logged.clear()
        if due or run.step % job.validation.every_steps == 0:
            _validate(run, dataset, driver)
        signal = ControlSignal(engine.highest(driver.control_signal(run.step)))
        if due or signal or run.step % job.checkpoint.every_steps == 0:
            if ledger is not None:
                ledger.flush()
                engine.any(False)  # all workers have written what this checkpoint counts on
            save(run, checkpoints, driver)
        if signal and not due:
            checkpoints.wait()
            return JobOutcome("stopped" if signal is ControlSignal.STOP else "restarting", run.step, total)
        progress.asks_for_data()
    checkpoints.wait()
    _finish(run, dataset, store)
    return JobOutcome("finished", run.step, total)


def train_step(run: Run, micro_batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Advance `run` by one optimiser step; return this worker's share of the scalars, detached.

    Sums over workers of the `loss/` terms are those of the global batch. A step whose gradient is not finite leaves
    the weights alone and is counted.
    """
    run.model.train()
    train = run.job.train
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(train, run.step, run.steps_per_epoch)

    scalars: dict[str, Tensor] = {}
    for i, batch in enumerate(micro_batches):
        last = i == len(micro_batches) - 1
        degraded, clean = batch.to_float(run.engine.device, run.job.seed, run.job.data.noise)
        share = Share(*batch.share)
        with run.engine.sync(last=last):
            with run.engine.autocast():
                output = run.called(degraded, batch.positions.to(run.engine.device))
            loss = restoration_loss(output, clean, run.weights, share)
            run.engine.backward(loss.total / len(micro_batches), last=last)
        terms = {f"loss/{name}": term.detach() / len(micro_batches) for name, term in loss.terms().items()}
        for name, term in (
            terms | attribution(run.job, output.image.detach(), clean, batch.degradations)
        ).items():
            scalars[name] = scalars[name] + term if i else term

    norm = run.engine.step(run.optimizer, train.clip_norm)
    if torch.isfinite(norm):
        if run.averaged is not None:
            with run.engine.whole(run.model):
                _average(run.averaged, run.model, train.ema_decay or 0.0, run.step)
        run.skipped_in_a_row = 0
    else:
        run.skipped_steps += 1
        run.skipped_in_a_row += 1
        if run.skipped_in_a_row == HOPELESS:
            raise TrainingError(
                f"the gradients of the last {HOPELESS} steps were not finite (step {run.step}): the run has diverged. "
                "Lower train.learning_rate, set train.clip_norm, or use precision fp32."
            )
    run.step += 1
    # The norm is equal everywhere, and what is returned is summed over the workers.
    scalars["optim/grad_norm"] = norm.detach() / run.engine.world_size
    return scalars


def start(job: Job, engine: Engine, stream: TrainStream, store: Store, state: State | None) -> Run:
    """Return a run at step 0, or at the checkpoint `state`; `store` holds the weights that step 0 begins from."""
    torch.manual_seed(job.seed)
    model = network.make(job.model).to(engine.device)
    if isinstance(model, MIRAGE):
        model.drop_path_seed = job.seed
        model.recompute(job.train.activation_checkpointing)
        if job.loss.spd_weight == 0 and model.config.alignment != "none":
            # Without its term the SPD head has no gradient, and DDP must not wait for one.
            for head in (model.spd_shallow, model.spd_latent):
                head.requires_grad_(False)
    if state is not None:
        model.load_state_dict(dict(state.tensors["model"]))
    elif job.init_from is not None:
        initial_weights.begin(job, model, store)
    averaged = None
    if job.train.ema_decay is not None:
        averaged = network.make(job.model).to(engine.device).eval()
        averaged.load_state_dict(dict(state.tensors["ema"]) if state else model.state_dict())
    kind = torch.optim.AdamW if job.train.optimizer == "adamw" else torch.optim.Adam
    optimizer = kind(
        [p for _, p in trainable(model)],
        lr=job.train.learning_rate,
        betas=job.train.betas,
        weight_decay=job.train.weight_decay,
        fused=True,
    )
    run = Run(
        job=job,
        engine=engine,
        model=model,
        called=engine.wrap(model, optimizer),
        optimizer=optimizer,
        weights=job.loss.build(),
        averaged=averaged,
        steps_per_epoch=stream.order.steps_per_epoch,
        stages=stream.stages,
    )
    if state is not None:
        engine.load_optimizer_state(model, optimizer, state.tensors["optimizer"])
        if engine.scale is not None:
            engine.scale.load(state.gradient_scale)
        run.step, run.skipped_steps, run.validation = state.step, state.skipped_steps, dict(state.metrics)
    return run


def _compile(run: Run, driver: Driver) -> None:
    """Have the model's blocks compiled on all workers, or, where one of them cannot, on none, and say so once."""
    obstacle = compile.obstacle(run.engine.device.type)
    if not run.engine.any(bool(obstacle)):
        compile.compile_blocks(run.model)
    elif run.engine.rank == 0:
        why = obstacle or "another worker finds no compiler."
        driver.emit(
            LogMessage(f"train.compile: nothing can be compiled, the blocks run eagerly: {why}", "warning")
        )


@torch.no_grad()
def _average(averaged: Network, model: Network, decay: float, step: int) -> None:
    """Move the averaged weights towards the model's; early on faster, so that the start is soon forgotten."""
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)
    # BatchNorm's running statistics are averaged too: those of the last few batches alone do not fit these weights.
    for slow, fast in zip(averaged.buffers(), model.buffers(), strict=True):
        if slow.is_floating_point():
            slow.lerp_(fast, 1 - decay)
        else:
            slow.copy_(fast)


def _ledger(run: Run, store: Store) -> SampleLedger | None:
    """Return this worker's ledger, when the job asks for one; worker 0 numbers the attempt for all."""
    if not run.job.data.ledger:
        return None
    attempt = run.engine.agree(str(next_attempt(store)) if run.engine.rank == 0 else "")
    return SampleLedger(store, int(attempt), run.engine.rank, run.engine.world_size)


def _note(run: Run, micro_batches: Sequence[Batch], ledger: SampleLedger | None) -> None:
    """Write down what the step is going to consume, and count what the stream left out as damaged."""
    for batch in micro_batches:
        if ledger is not None:
            ledger.record(run.step, batch)
        run.skipped_samples += len(batch.skipped)


# --- once in a while -----------------------------------------------------------------------------------------


def _log(run: Run, steps: Sequence[Mapping[str, Tensor]], progress: ProgressMeter, driver: Driver) -> None:
    """Tell the means over the steps since the last time; single steps see too few images to be read."""
    names = sorted(steps[0])
    mean = torch.stack([torch.stack([step[name].float() for name in names]) for step in steps]).mean(0)
    values = attributed(run.job, dict(zip(names, run.engine.sum(mean).tolist(), strict=True)))
    values["optim/lr"] = learning_rate(run.job.train, run.step - 1, run.steps_per_epoch)
    values |= progress.rates(run.stages.at_step(run.step - 1).batch)
    values["optim/skipped_steps"] = float(run.skipped_steps)
    if run.job.data.on_corrupt == "skip":
        lost = run.engine.sum(mean.new_tensor([run.skipped_samples]))
        values["data/skipped_samples"] = float(lost)
    if run.engine.rank == 0:
        driver.emit(progress.event(run.step, values))


def _validate(run: Run, dataset: Dataset, driver: Driver) -> None:
    """Score centre crops of some held-out photographs, shared among the workers, and picture one of each kind."""
    items = validation_items(datasets.evaluation_set(dataset, run.job), run.job.validation)
    mine = items[run.engine.rank :: run.engine.world_size]
    judged = run.judged()
    scores = _score(run, judged, mine)
    rows = summarise(scores, run.job.evaluate.degradations)
    run.validation = as_metrics(rows, f"val/{run.job.setting}") | {METRIC: rows[-1].psnr}
    if run.engine.rank == 0:
        psnr = {row.degradation: row.psnr for row in rows}
        gain = {row.degradation: row.gain for row in rows}
        driver.emit(Validation(run.step, run.validation, psnr, gain))
        with run.eagerly():
            picture = comparison_sheet(items, network.restoring(judged), run.engine.device)
        driver.emit(Image("sheet", picture, run.step))


def _score(run: Run, model: Network, items: Iterable[EvalItem]) -> list[ImageScore]:
    with run.engine.autocast(), run.eagerly():
        restore = network.restoring(model)
        mine = score_images(lambda x: restore(x).float(), items, run.engine.device)
    return from_records(run.engine.gather(as_records(mine)))


# --- checkpoint and resume -----------------------------------------------------------------------------------


def _retention(kept: Checkpoint) -> Retention:
    return Retention(kept.keep, kept.keep_best, kept.metric, kept.order == "max", kept.keep_hours)


def save(run: Run, checkpoints: Checkpoints, driver: Driver) -> None:
    """Hand a snapshot of the run to the writer, which worker 0 has, and tell how long the steps had to wait."""
    began = time.monotonic()
    if run.engine.rank != 0 and not run.engine.sharded:
        return
    optimizer = run.engine.optimizer_state(run.model, run.optimizer)
    with run.engine.whole(run.model):
        model = _snapshot(run.model.state_dict())
    if run.engine.rank != 0:
        return
    tensors = {"model": model, "optimizer": optimizer}
    if run.averaged is not None:
        tensors["ema"] = _snapshot(run.averaged.state_dict())
    checkpoints.save(
        State(
            step=run.step,
            position=run.position,
            skipped_steps=run.skipped_steps,
            tensors=tensors,
            metrics=run.validation,
            world_size=run.engine.world_size,
            gradient_scale=run.engine.scale.state() if run.engine.scale else {},
        )
    )
    values = {"perf/checkpoint_stall_seconds": time.monotonic() - began}
    if checkpoints.write_seconds:
        values["perf/checkpoint_write_seconds"] = checkpoints.write_seconds  # of the one before
    driver.emit(Metrics(run.step, values))


def _newest(stream: TrainStream, engine: Engine, checkpoints: Checkpoints, driver: Driver) -> State | None:
    """Return the newest whole checkpoint, None where there is none; worker 0 chooses it for all."""
    name = engine.agree(checkpoints.newest() if engine.rank == 0 else "")
    if not name:
        return None
    state = checkpoints.load(name)
    if state.position != stream.stages.position_at(state.step):
        raise TrainingError(
            f"checkpoint {name} stands at sample {state.position}, and step {state.step} of this job begins at "
            f"{stream.stages.position_at(state.step)}. It was not written by this job."
        )
    if engine.rank == 0:
        driver.emit(Resumed(name, state.step))
    return state


def _snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


# --- end -----------------------------------------------------------------------------------------------------


def _finish(run: Run, dataset: Dataset, store: Store) -> None:
    """Judge whole held-out photographs, shared among the workers; write weights and result, the result last."""
    items = datasets.evaluation_set(dataset, run.job)
    judged = run.judged()
    scores = _score(run, judged, items.items(run.engine.rank, run.engine.world_size))
    if run.engine.rank != 0:
        return
    facts = {
        "run_id": run_id(run.job, dataset.digests),
        "recipe": run.job.recipe,
        "weights": "raw" if run.averaged is None else "EMA",
    }
    weights = network.dump(judged, facts)
    key = f"weights/{hashlib.sha256(weights).hexdigest()}.safetensors"
    store.write(key, weights)
    result = {
        "step": run.step,
        "positions": run.position,
        "weights": key,
        "averaged": run.averaged is not None,
        "skipped_steps": run.skipped_steps,
        "scores": as_records(scores),
        RULE: asdict(_retention(run.job.checkpoint)),
        "pace": as_record(run.clock.pace(run.engine.world_size, run.engine.device)),
        "finished_unix": int(time.time()),
    }
    store.write(RESULT, json.dumps(result, indent=1).encode())
