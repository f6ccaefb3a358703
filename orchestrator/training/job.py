"""A training job from its file to its end: pack, plan, train, judge, register, restore one photograph.

Every stage is idempotent. A job that is submitted again goes on where it was; one that is finished is reported
again and changes nothing.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from orchestrator import events
from orchestrator.config.loader import dump_job
from orchestrator.config.schema import Job
from orchestrator.console import Echo, console, message_echo
from orchestrator.data import datasets
from orchestrator.data.job import pack_what_is_missing
from orchestrator.errors import PlanError, TrackingError
from orchestrator.evaluation import run_report
from orchestrator.evaluation.model_card import model_card
from orchestrator.evaluation.previews import comparison_sheet, validation_items
from orchestrator.evaluation.scores import DegradationScore, as_metrics, from_records, summarise
from orchestrator.events import Emit, Event
from orchestrator.imaging.convert import png_bytes, to_float, to_uint8
from orchestrator.models import network
from orchestrator.paths import home
from orchestrator.planning import throughput
from orchestrator.planning.plan import Plan, make_plan
from orchestrator.registry import registration, versions
from orchestrator.registry.versions import ModelVersion
from orchestrator.run_files import JOB, RESULT, RUN_TAG, SCORES
from orchestrator.signals import on_stop
from orchestrator.training import initial_weights
from orchestrator.training.driver import ControlSignal, Driver, JobOutcome
from orchestrator.training.engines.base import InProcessEngine
from orchestrator.training.loop import train
from orchestrator.training.profiling import FOLDER
from orchestrator.version import code_version
from shards.dataset import Dataset
from shards.evaluation import EvalItem

if TYPE_CHECKING:
    pass
from orchestrator.tracking import background, runs
from orchestrator.tracking.uri import page_command, resolve_tracking_uri, without_password
from orchestrator.training.assignment import assignment_of
from orchestrator.training.run_location import Place, place_of

log = logging.getLogger(__name__)


def run_job(
    job: Job, echo: Echo, *, in_process: bool = False, lineage: Mapping[str, str] | None = None
) -> JobOutcome:
    """Train `job` to its end and say what a user wants to know on the way.

    `in_process` trains in this process, without Ray. `lineage`: tags of the run in MLflow and of the registered version
    that say what it comes from. Raises an error of `orchestrator.errors` or `shards.errors`.
    """
    emit = console(echo, job.track.log, job.name)
    echo = message_echo(emit)
    uri = resolve_tracking_uri(job.track.uri)
    pack_what_is_missing(job, echo)
    plan = make_plan(_alone(job) if in_process else job, strict=True)
    echo(plan.render() + "\n")
    dataset = datasets.open_dataset(job)
    place = place_of(job, dataset)
    place.store.ensure_bucket()

    found = runs.find_run(uri, RUN_TAG, place.run_id, job.track.experiment)
    known = found.id if found else None
    finished = place.store.exists(RESULT)
    if job.init_from is not None and not finished:
        digest = initial_weights.keep(job, place.store, uri)
        echo(f"begins     from {job.init_from}, sha256 {digest[:16]}")
    if finished:
        emit(events.RunAlreadyFinished(place.run_id))
        tracked = known or open_run(job, plan, place, uri, None, lineage)
        outcome = JobOutcome("finished", plan.total_steps, plan.total_steps)
    else:
        tracked = open_run(job, plan, place, uri, known, lineage)
        emit(events.RunStarted(place.run_id, known is not None))
        outcome = _train(job, dataset, place, uri, tracked, emit, in_process=in_process)
        if outcome.status == "stopped":
            end_run(uri, tracked, "KILLED")
            emit(events.RunStopped(outcome.step))
            return outcome
    try:
        _conclude(job, dataset, place, uri, tracked, emit, lineage or {})
    except BaseException:
        if not finished:
            end_run(uri, tracked, "FAILED")
        raise
    return outcome


def _alone(job: Job) -> Job:
    """Return the job with one worker, as it is trained in this process; it is the same run."""
    return job.model_copy(update={"workers": job.workers.model_copy(update={"min": 1, "max": 1})})


def open_run(
    job: Job,
    plan: Plan,
    place: Place,
    uri: str,
    known: str | None,
    lineage: Mapping[str, str] | None = None,
    chosen: Mapping[str, object] | None = None,
) -> str:
    """Open the run in MLflow, anew or the `known` one again, and return its id there. Raises TrackingError.

    `lineage` become tags of it, `chosen` parameters beside those of the job.
    """
    tags = {
        **(lineage or {}),
        RUN_TAG: place.run_id,
        "mirage.setting": job.setting,
        "mirage.recipe": job.recipe,
        "mirage.code_version": code_version(),
        "mirage.data": ", ".join(datasets.manifest_uris(job)),
    }
    params = {
        **runs.flat_params(_shown_job(job).model_dump(mode="json", exclude_none=True)),
        "plan.parameters": plan.parameters,
        "plan.macs_224": plan.macs,
        "plan.total_steps": plan.total_steps,
        **(chosen or {}),
    }
    tracked = runs.start_run(uri, job.track.experiment, place.run_id, tags, params, resume_id=known)
    if known is None:
        runs.log_artifacts(
            uri, tracked, {"job.yaml": dump_job(_shown_job(job)).encode(), "plan.txt": plan.render().encode()}
        )
    return tracked


def _shown_job(job: Job) -> Job:
    """Return the job as it may be shown: without the password that a tracking URI can carry."""
    if job.track.uri is None:
        return job
    return job.model_copy(
        update={"track": job.track.model_copy(update={"uri": without_password(job.track.uri)})}
    )


def _train(
    job: Job,
    dataset: Dataset,
    place: Place,
    uri: str,
    tracked: str,
    emit: Emit,
    *,
    in_process: bool,
) -> JobOutcome:
    tracker = background.Tracker(uri, tracked, home() / "spool")
    driver = _RunDriver(emit, tracker)
    try:
        with on_stop(driver.stop.set):
            if in_process:
                outcome = train_in_process(job, dataset, place, driver)
            else:
                from orchestrator.cluster.connection import connected
                from orchestrator.training.ray_launcher import launch

                with connected():
                    outcome = launch(job, assignment_of(job, dataset, place), driver, driver.stop)
    except BaseException:
        tracker.close()
        end_run(uri, tracked, "FAILED")
        raise
    tracker.close()
    _log_profiles(place, uri, tracked)
    return outcome


def _log_profiles(place: Place, uri: str, tracked: str) -> None:
    """Put the profiler's traces beside the run's numbers; they stay in the store if MLflow is away."""
    store = place.store
    traces = {key: store.read(key) for key in store.list(f"{FOLDER}/")}
    if traces:
        try:
            runs.log_artifacts(uri, tracked, traces)
        except TrackingError as error:
            log.warning("the traces stay in %s/%s alone: %s", place.uri, FOLDER, error)


def end_run(uri: str, tracked: str, status: str) -> None:
    """End the MLflow run; that MLflow is away must not hide how the run itself ended."""
    try:
        runs.end_run(uri, tracked, status)
    except TrackingError as error:
        log.warning("the run in MLflow stays open: %s", error)


def train_in_process(job: Job, dataset: Dataset, place: Place, driver: Driver) -> JobOutcome:
    """Train in this process until the end, or until `driver` signals it to stop."""
    if job.engine.name != "ddp":
        raise PlanError(
            f"engine.name {job.engine.name} needs workers that Ray starts. Leave out --in-process, or add "
            "--set engine.name=ddp."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(max(1, int(job.workers.cpus)))
    engine = InProcessEngine(device, job.train.precision)
    return train(job, dataset, place.store, engine, driver, code_version())


class _RunDriver:
    """A driver that prints and tracks events, and stops the run when `stop` is set."""

    def __init__(self, emit: Emit, tracker: background.Tracker) -> None:
        self.stop = threading.Event()
        self._emit, self._tracker = emit, tracker

    def emit(self, event: Event) -> None:
        track(event, self._tracker)
        self._emit(event)

    def control_signal(self, step: int) -> ControlSignal:
        return ControlSignal.STOP if self.stop.is_set() else ControlSignal.CONTINUE


def track(event: Event, tracker: background.Tracker) -> None:
    """Track an event's metrics or image in MLflow."""
    match event:
        case events.Measured(step, metrics):
            tracker.metrics(step, metrics)
        case events.Image(name, png, step):
            tracker.image(name, png, step)


# --- after training ------------------------------------------------------------------------------------------


def _conclude(
    job: Job, dataset: Dataset, place: Place, uri: str, tracked: str, emit: Emit, lineage: Mapping[str, str]
) -> None:
    """Judge, register, restore one photograph, and say where everything is."""
    result = json.loads(place.store.read(RESULT))
    throughput.store_throughput(job, place.run_id, result.get("pace"))
    rows = summarise(from_records(result["scores"]), job.evaluate.degradations)
    weights = place.store.read(result["weights"])
    how = run_report.legend(
        job.evaluate.protocol, job.recipe, "EMA" if result["averaged"] else "raw", _each(rows)
    )
    place.folder.mkdir(parents=True, exist_ok=True)
    card = model_card(job, dataset, rows, how, place.run_id, code_version())

    registered = None
    if job.track.register_as:
        registered = registration.register(
            uri,
            job.track.register_as,
            run_id=tracked,
            weights=weights,
            card=card,
            metrics=as_metrics(rows, "test"),
            tags={
                **{name: value for name, value in lineage.items() if not name.startswith("mlflow.")},
                RUN_TAG: place.run_id,
                "recipe": job.recipe,
                "protocol": job.evaluate.protocol,
                "data": ", ".join(dataset.digests),
            },
            idempotency_key=f"{place.run_id}:{result['weights']}",
            files={JOB: dump_job(_shown_job(job)).encode(), SCORES: _evidence(job, dataset, result)},
        )
    files = _pictures(job, dataset, place, weights, registered, uri)
    files["report.md"] = _write(
        place.folder / "report.md", run_report.markdown_report(rows, place.run_id, how).encode()
    )
    files["scores.json"] = _write(
        place.folder / "scores.json", json.dumps(result["scores"], indent=1).encode()
    )
    files["model-card.md"] = _write(place.folder / "model-card.md", card.encode())
    if not runs.is_finished(uri, tracked):
        background.log_metrics(uri, tracked, result["step"], as_metrics(rows, "test"))
        runs.log_artifacts(uri, tracked, files)
        runs.end_run(uri, tracked, "FINISHED")

    report = [run_report.score_table(rows), how, run_report.conclusion(rows)]
    emit(events.LogMessage("\n" + "\n\n".join(report) + "\n"))
    if registered:
        emit(events.ModelRegistered(registered.name, str(registered.version), registered.uri))
    shown = {name: _shown(path) for name, path in files.items()}
    emit(events.RunFinished(place.run_id, shown, page_command(uri)))


def _evidence(job: Job, dataset: Dataset, result: Mapping[str, Any]) -> bytes:
    """Return the score of every photograph with all that says whether two models may be compared."""
    how = {
        "protocol": job.evaluate.protocol,
        "data": list(dataset.digests),
        "recipe": job.recipe,
        "weights": "EMA" if result["averaged"] else "raw",
    }
    return json.dumps({**how, "scores": result["scores"]}, indent=1).encode()


def _pictures(
    job: Job,
    dataset: Dataset,
    place: Place,
    weights: bytes,
    registered: ModelVersion | None,
    uri: str,
) -> dict[str, Path]:
    """Write the comparison sheet, and restore the job's example with the model as the registry gives it."""
    held_out = datasets.evaluation_set(dataset, job)
    cpu = torch.device("cpu")
    restore = network.restoring(network.read(job.model, weights))
    sheet = comparison_sheet(validation_items(held_out, job.validation), restore, cpu)
    files = {"sheet.png": _write(place.folder / "sheet.png", sheet)}
    if job.example is None:
        return files
    item = _example(job, held_out.items(0, 1))
    if registered is not None:
        from mirage import load

        restore = network.restoring(load(versions.weights_file(registered.uri, uri)))
    restored = to_uint8(restore(to_float(item.degraded, cpu)))
    for name, picture in (("restored", restored), ("degraded", item.degraded)):
        files[f"{name}.png"] = _write(place.folder / f"{name}.png", png_bytes(picture))
    return files


def _example(job: Job, items: Iterable[EvalItem]) -> EvalItem:
    assert job.example is not None, "called for jobs with an example"
    wanted = (job.example.photograph, job.example.degradation)
    return next(item for item in items if (item.id, item.degradation) == wanted)


def _each(rows: list[DegradationScore]) -> int:
    return max(row.n for row in rows[:-1])


def _write(path: Path, content: bytes) -> Path:
    if not (path.exists() and path.read_bytes() == content):
        path.write_bytes(content)
    return path


def _shown(path: Path) -> str:
    """Return the path relative to the working directory when that is shorter to read."""
    here = os.path.relpath(path)
    return here if not here.startswith("..") else str(path)
