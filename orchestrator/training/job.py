"""Run a training job: pack, plan, train and publish.

Every stage is idempotent. A job that is submitted again resumes; a finished one is reported again and changes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from orchestrator import events
from orchestrator.config.job_types import JobOutcome
from orchestrator.config.loader import dump_job, job_from_yaml
from orchestrator.config.schema import Job
from orchestrator.console import Echo, console, message_echo, text_console
from orchestrator.data import datasets
from orchestrator.data.job import pack_if_missing
from orchestrator.errors import OrchestratorError, OwnedError, PlanError, TrackingError
from orchestrator.events import Emit, Event
from orchestrator.history.recorder import Recorder
from orchestrator.masking import without_password
from orchestrator.models import network
from orchestrator.ownership import owned
from orchestrator.paths import home
from orchestrator.planning.plan import Plan, make_plan
from orchestrator.progress import progress, replaces_lines
from orchestrator.records import read_record
from orchestrator.run_files import RESULT, RUN_TAG, UNPUBLISHED
from orchestrator.signals import Stopped, on_stop, raise_on_stop
from orchestrator.tracking import background, runs
from orchestrator.tracking.checkpoints import TrackedCheckpoint
from orchestrator.tracking.inputs import InputDataset, inputs_of, log_inputs
from orchestrator.tracking.mirrors import check_installed, open_mirrors
from orchestrator.tracking.uri import resolve_tracking_uri
from orchestrator.training import initial_weights, loss_network, optimizers
from orchestrator.training.assignment import worker_assignment
from orchestrator.training.checkpoint import step_of
from orchestrator.training.context import RunContext
from orchestrator.training.driver import ControlSignal, Driver
from orchestrator.training.engines.base import Engine
from orchestrator.training.fencing import Turn
from orchestrator.training.loop import train
from orchestrator.training.profiling import FOLDER
from orchestrator.training.publication import is_published, publish
from orchestrator.training.recording import recorded
from orchestrator.training.result import is_finished
from orchestrator.training.run_location import RunLocation, locate_run
from orchestrator.version import code_version
from shards.dataset import Dataset
from shards.errors import ShardsError
from shards.filesystem import read_regular


def run_job(
    job: Job,
    echo: Echo,
    *,
    in_process: bool = False,
    wait: bool = False,
    lineage: Mapping[str, str] | None = None,
) -> JobOutcome:
    """Train `job` to its end and print its progress.

    `in_process` trains in this process, without Ray. `wait` waits while another process owns the run. `lineage`: tags
    for the origin of the run in MLflow and of the registered version. Raises an error of `orchestrator.errors` or
    `shards.errors`.
    """
    with progress(echo, "training") as (move,):
        emit = console(echo, job.track.log, job.name, move if replaces_lines() else None)
        try:
            with raise_on_stop():
                return _run(job, emit, in_process, wait, lineage or {})
        except Stopped:
            emit(events.LogMessage("stopped. Run the job again to continue."))
            return JobOutcome("stopped", 0, 0)


def _run(job: Job, emit: Emit, in_process: bool, wait: bool, lineage: Mapping[str, str]) -> JobOutcome:
    """Do `run_job`. Raises Stopped when the process is asked to stop while it does not train."""
    echo = message_echo(emit)
    uri = resolve_tracking_uri(job.track.uri)
    check_installed(job.track.also)
    if job.track.register_as:
        network.require_registrable(job.model)
    optimizers.require_installed(job.train)
    pack_if_missing(job, echo)
    dataset = datasets.open_dataset(job)
    plan = make_plan(_alone(job) if in_process else job, strict=True, dataset=dataset)
    echo(plan.render() + "\n")
    location = locate_run(job, dataset)
    location.store.ensure_bucket()
    finished = RunContext(job, dataset, plan, location, uri, "", lineage)
    if is_published(job, location, uri):  # without a claim: the store may be one that is only read
        return _report_finished(finished, emit)
    stop = threading.Event()
    with owned(location.store, f"run {location.run_id}", echo, wait=wait, on_lost=stop.set) as lease:
        if is_finished(location.store):
            return _report_finished(finished, emit)
        found = runs.find_run(uri, RUN_TAG, location.run_id, job.track.experiment)
        if job.init_from is not None:
            digest = initial_weights.store_weights(job, location.store, uri)
            echo(f"begins     from {job.init_from}, sha256 {digest[:16]}")
        loss_network.store_network(job, location.store)
        tracking_id = open_run(job, dataset, plan, location, uri, found.id if found else None, lineage)
        run = RunContext(job, dataset, plan, location, uri, tracking_id, lineage)
        emit(events.RunStarted(location.run_id, found is not None))
        with tracked(run) as tracker:
            with recorded(run, tracker, lease, in_process=in_process) as recorder:
                outcome = _train(run, tracker, recorder, emit, stop, lease.number, in_process=in_process)
                lease.check()
                if outcome.status != "stopped":
                    publish(run, tracker, emit, recorder=recorder)
            if outcome.status == "stopped":
                tracker.end("KILLED")
        if outcome.status == "stopped":
            emit(events.RunStopped(outcome.step))
        return outcome


def _report_finished(run: RunContext, emit: Emit) -> JobOutcome:
    emit(events.RunAlreadyFinished(run.location.run_id))
    _publish_finished(run, emit)
    return JobOutcome("finished", run.plan.total_steps, run.plan.total_steps)


@dataclass(frozen=True)
class _Unpublished:
    """What `publication.unpublished` writes."""

    job: str
    digests: list[str]
    lineage: dict[str, str]


def publish_waiting(echo: Echo) -> bool:
    """Publish the finished runs whose model or result MLflow did not take; return whether none waits any longer."""
    emit = text_console(echo)
    complete = True
    for file in sorted((home() / "runs").glob(f"*/{UNPUBLISHED}")):
        try:
            content = read_record(_Unpublished, read_regular(file))
            job = job_from_yaml(content.job)
            if not isinstance(job, Job):
                raise TypeError("only training jobs are published.")
            dataset = datasets.open_dataset_at(datasets.manifest_uris(job), content.digests, job.data)
            location = locate_run(job, dataset)
            if not location.store.exists(RESULT):
                raise TrackingError(f"{location.uri} holds no result any more. Submit the job again.")
            plan = make_plan(_alone(job), strict=True, dataset=dataset)
            run = RunContext(
                job, dataset, plan, location, resolve_tracking_uri(job.track.uri), "", content.lineage
            )
            with owned(location.store, f"run {location.run_id}", echo):
                _publish_finished(run, emit)
        except (OrchestratorError, ShardsError, OSError, TypeError, ValueError) as error:
            echo(f"{file.parent.name}: cannot be published: {error} The file {file} asks for it.")
        complete &= not file.exists()
    return complete


def _publish_finished(run: RunContext, emit: Emit) -> None:
    """Publish a run that has its result; without MLflow its report alone."""
    try:
        found = runs.find_run(run.tracking_uri, RUN_TAG, run.location.run_id, run.job.track.experiment)
        tracking_id = (
            found.id
            if found
            else open_run(run.job, run.dataset, run.plan, run.location, run.tracking_uri, None, run.lineage)
        )
    except TrackingError as error:
        emit(events.LogMessage(str(error), "warning"))
        publish(run, None, emit)
        return
    run = replace(run, tracking_id=tracking_id)
    tracker = open_tracker(run)
    if found is None:
        describe_run(tracker, run.job, run.plan)
    try:
        publish(run, tracker, emit, tracked=found is not None and found.finished)
    finally:
        tracker.close()


@contextmanager
def tracked(run: RunContext) -> Iterator[background.Tracker]:
    """Track the run in MLflow and in the mirrors of its job; if the block raises, it ends there as FAILED."""
    tracker = open_tracker(run, mirrors=True)
    describe_run(tracker, run.job, run.plan)
    try:
        yield tracker
    except OwnedError:
        raise  # the run in MLflow belongs to its new owner too
    except BaseException as error:
        tracker.end("KILLED" if isinstance(error, Stopped) else "FAILED")
        raise
    finally:
        tracker.close()


def open_tracker(run: RunContext, *, mirrors: bool = False) -> background.Tracker:
    """Return a tracker of the run, and of the mirrors that its job asks for."""
    track, name = run.job.track, run.location.run_id
    opened = open_mirrors(track.also, track.experiment, name, run.location.folder) if mirrors else []
    return background.Tracker(run.tracking_uri, run.tracking_id, home() / "spool", opened, name)


def _alone(job: Job) -> Job:
    """Return the job with one worker; it is the same run."""
    return job.model_copy(update={"workers": job.workers.model_copy(update={"min": 1, "max": 1})})


def open_run(
    job: Job,
    dataset: Dataset,
    plan: Plan,
    location: RunLocation,
    uri: str,
    existing_id: str | None,
    lineage: Mapping[str, str] | None = None,
    extra_params: Mapping[str, object] | None = None,
) -> str:
    """Start a run in MLflow, or reopen `existing_id`; return its id. Raises TrackingError.

    `lineage`: more tags. `extra_params`: parameters in addition to those of the job.
    """
    tags = {
        **(lineage or {}),
        RUN_TAG: location.run_id,
        "mirage.setting": job.setting,
        "mirage.recipe": job.recipe,
        "mirage.code_version": code_version(),
        "mirage.data": ", ".join(datasets.manifest_uris(job)),
        **runs.source_tags(f"mirage run, job {job.name}"),
        runs.DESCRIPTION_TAG: _description(job, plan, location),
    }
    params = {
        **runs.flat_params(job.model_dump(mode="json", exclude_none=True)),
        "plan.parameters": plan.parameters,
        "plan.macs_224": plan.macs,
        "plan.total_steps": plan.total_steps,
        **(extra_params or {}),
    }
    tracking_id = runs.start_run(
        uri, job.track.experiment, location.run_id, tags, params, resume_id=existing_id
    )
    validated, evaluated = validation_input(job, dataset), evaluation_input(job, dataset)
    log_inputs(uri, tracking_id, [*inputs_of(dataset, "train", "training"), *validated, *evaluated])
    return tracking_id


def describe_run(tracker: background.Tracker, job: Job, plan: Plan) -> None:
    """Send the files that say what the run does."""
    tracker.artifact("job.yaml", dump_job(job).encode())
    tracker.artifact("plan.txt", plan.render().encode())


def validation_input(job: Job, dataset: Dataset) -> list[InputDataset]:
    """Return the photographs that are validated during the run."""
    return inputs_of(dataset, "test", "validation", job.validation.photographs)


def evaluation_input(job: Job, dataset: Dataset) -> list[InputDataset]:
    """Return the photographs that the run is evaluated on at its end."""
    return inputs_of(dataset, "test", "evaluation")


def _description(job: Job, plan: Plan, location: RunLocation) -> str:
    """Return the description of the run on MLflow's page, in Markdown."""
    return (
        f"{job.model.label} ({plan.parameters / 1e6:.2f} M parameters), "
        f"recipe `{job.recipe}`, {plan.total_steps} steps on {', '.join(job.data.mixture)}.\n\n"
        f"Checkpoints and result: `{without_password(location.uri)}`. To resume or report the run, submit `job.yaml` "
        "(see Artifacts) again."
    )


def _train(
    run: RunContext,
    tracker: background.Tracker,
    recorder: Recorder,
    emit: Emit,
    stop: threading.Event,
    owner: int,
    *,
    in_process: bool,
) -> JobOutcome:
    """Train until the end, or until `stop` is set or the process is asked to stop; `owner`: number of its claim."""
    driver = _RunDriver(emit, tracker, recorder, run, stop)
    with on_stop(stop.set):
        if in_process:
            outcome = train_in_process(run.job, run.dataset, run.location, driver, Turn(owner))
        else:
            outcome = _train_on_cluster(run, driver, owner)
    for key in run.location.store.list(f"{FOLDER}/"):
        tracker.artifact(key, run.location.store.read(key))  # the traces of the profiler
    return outcome


def _train_on_cluster(run: RunContext, driver: _RunDriver, owner: int) -> JobOutcome:
    from orchestrator.cluster.connection import connected
    from orchestrator.training.ray_launcher import launch

    with connected():
        spec = worker_assignment(run.job, run.dataset, run.location, owner)
        return launch(run.job, spec, driver, driver.stop)


def train_in_process(
    job: Job, dataset: Dataset, location: RunLocation, driver: Driver, turn: Turn | None = None
) -> JobOutcome:
    """Train in this process until the end, or until `driver` signals it to stop."""
    if job.engine.name != "ddp":
        raise PlanError(
            f"engine.name {job.engine.name} needs workers that Ray starts. Leave out --in-process, or add "
            "--set engine.name=ddp."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(max(1, int(job.workers.cpus)))
    engine = Engine(device, job.train.precision)
    return train(job, dataset, location.store, engine, driver, code_version(), turn)


class _RunDriver:
    """A driver that prints, tracks and records events, and stops the run when `stop` is set."""

    def __init__(
        self,
        emit: Emit,
        tracker: background.Tracker,
        recorder: Recorder,
        run: RunContext,
        stop: threading.Event,
    ) -> None:
        self.stop = stop
        self._emit, self._tracker, self._recorder, self._run = emit, tracker, recorder, run

    def emit(self, event: Event) -> None:
        track(event, self._tracker, self._run)
        self._recorder.add(event)
        self._emit(event)

    def control_signal(self, step: int) -> ControlSignal:
        return ControlSignal.STOP if self.stop.is_set() else ControlSignal.CONTINUE


def track(event: Event, tracker: background.Tracker, run: RunContext) -> None:
    """Track an event's metrics, image or checkpoints in MLflow."""
    match event:
        case events.Measured(step, metrics):
            tracker.metrics(step, metrics)
        case events.Image(name, png, step):
            tracker.image(name, png, step)
        case events.CheckpointWritten(kept=kept):
            _track_checkpoints(kept, tracker, run)


def _track_checkpoints(
    kept: Mapping[str, Mapping[str, float]], tracker: background.Tracker, run: RunContext
) -> None:
    job = run.job
    prefixes = (f"val/{job.setting}/", "val/")
    checkpoints = [
        TrackedCheckpoint(
            f"{without_password(run.location.uri)}/checkpoints/{name}.json",
            step_of(name),
            {_without_prefix(key, prefixes): value for key, value in metrics.items()},
        )
        for name, metrics in kept.items()
    ]
    params = {"recipe": job.recipe, "setting": job.setting, "plan.parameters": run.plan.parameters}
    validated_on = validation_input(job, run.dataset)
    tracker.checkpoints(checkpoints, params, validated_on[0] if len(validated_on) == 1 else None)


def _without_prefix(key: str, prefixes: Sequence[str]) -> str:
    return next((key.removeprefix(prefix) for prefix in prefixes if key.startswith(prefix)), key)
