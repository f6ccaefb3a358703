"""A training job from its file to its end: pack, plan, train, judge, register, restore one photograph.

Every stage is idempotent. A job that is submitted again goes on where it was; one that is finished is reported
again and changes nothing.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from orchestrator.config.loader import dump_job
from orchestrator.config.schema import Job
from orchestrator.console import JsonLines, Say
from orchestrator.data import datasets
from orchestrator.data.job import pack_what_is_missing
from orchestrator.errors import PlanError, TrackingError
from orchestrator.evaluation import run_report
from orchestrator.evaluation.model_card import model_card
from orchestrator.evaluation.previews import comparison_sheet, validation_items
from orchestrator.evaluation.scores import DegradationScore, as_metrics, from_records, summarise
from orchestrator.imaging.convert import png_bytes, to_float, to_uint8
from orchestrator.models import network
from orchestrator.paths import home
from orchestrator.planning import throughput
from orchestrator.planning.plan import Plan, make_plan
from orchestrator.registry import registration, versions
from orchestrator.registry.versions import ModelVersion
from orchestrator.run_files import JOB, RESULT, RUN_TAG, SCORES
from orchestrator.signals import on_stop
from orchestrator.tracking import runs
from orchestrator.training import initial_weights
from orchestrator.training.driver import Driver, Outcome, Wish
from orchestrator.training.engines.base import InProcessEngine
from orchestrator.training.loop import train
from orchestrator.training.profiling import FOLDER
from orchestrator.version import code_version
from shards.dataset import Dataset
from shards.evaluation import EvalItem

if TYPE_CHECKING:
    pass
from orchestrator.tracking import background
from orchestrator.tracking.uri import page_command, resolve_tracking_uri, without_password
from orchestrator.training.assignment import assignment_of
from orchestrator.training.run_location import Place, place_of

log = logging.getLogger(__name__)


def run_job(
    job: Job, say: Say, *, in_process: bool = False, lineage: Mapping[str, str] | None = None
) -> Outcome:
    """Train `job` to its end and say what a user wants to know on the way.

    `in_process` trains in this process, without Ray. `lineage`: tags of the run in MLflow and of the registered version
    that say what it comes from. Raises an error of `orchestrator.errors` or `shards.errors`.
    """
    events = JsonLines(say, job.name) if job.track.log == "json" else None
    say = events.line if events else say
    uri = resolve_tracking_uri(job.track.uri)
    pack_what_is_missing(job, say)
    plan = make_plan(_alone(job) if in_process else job, strict=True)
    say(plan.render() + "\n")
    dataset = datasets.open_dataset(job)
    place = place_of(job, dataset)
    place.store.ensure_bucket()

    found = runs.find_run(uri, RUN_TAG, place.run_id, job.track.experiment)
    known = found.id if found else None
    finished = place.store.exists(RESULT)
    if job.init_from is not None and not finished:
        digest = initial_weights.keep(job, place.store, uri)
        say(f"begins     from {job.init_from}, sha256 {digest[:16]}")
    if finished:
        say(
            f"run {place.run_id} is finished already; this is its result. To train anew, change the job: --set seed=1"
        )
        tracked = known or open_run(job, plan, place, uri, None, lineage)
        outcome = Outcome("finished", plan.total_steps, plan.total_steps)
    else:
        tracked = open_run(job, plan, place, uri, known, lineage)
        say(f"run {place.run_id}" + (" goes on" if known else ""))
        outcome = _train(job, dataset, place, uri, tracked, say, events, in_process=in_process)
        if outcome.status == "stopped":
            end_run(uri, tracked, "KILLED")
            where = f"at step {outcome.step} with a checkpoint" if outcome.step else "before it began"
            say(f"stopped {where}. Submit the job again to go on.")
            return outcome
    try:
        _conclude(job, dataset, place, uri, tracked, say, lineage or {})
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
    say: Say,
    events: JsonLines | None,
    *,
    in_process: bool,
) -> Outcome:
    tracker = background.Tracker(uri, tracked, home() / "spool")
    driver = _Here(say, tracker, events)
    try:
        if in_process:
            outcome = _train_here(job, dataset, place, driver)
        else:
            from orchestrator.cluster.connection import connected
            from orchestrator.training.ray_launcher import launch

            with connected():
                outcome = launch(job, assignment_of(job, dataset, place), driver)
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


def _train_here(job: Job, dataset: Dataset, place: Place, driver: _Here) -> Outcome:
    with on_stop(driver.stop):
        return train_here(job, dataset, place, driver)


def train_here(job: Job, dataset: Dataset, place: Place, driver: Driver) -> Outcome:
    """Train in this process until the end, or until `driver` wishes it to stop."""
    if job.engine.name != "ddp":
        raise PlanError(
            f"engine.name {job.engine.name} needs workers that Ray starts. Leave out --in-process, or add "
            "--set engine.name=ddp."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(max(1, int(job.workers.cpus)))
    engine = InProcessEngine(device, job.train.precision)
    return train(job, dataset, place.store, engine, driver, code_version())


class _Here:
    """The driver's own side of `orchestrator.training.driver.Driver`: the terminal and the tracker."""

    def __init__(self, say: Say, tracker: background.Tracker, events: JsonLines | None) -> None:
        self.say = say
        self._tracker = tracker
        self._events = events
        self._stopping = False

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._tracker.metrics(step, values)
        if self._events:
            self._events.metrics(step, values)

    def image(self, name: str, png: bytes, step: int) -> None:
        self._tracker.image(name, png, step)

    def wish(self, step: int) -> Wish:
        return Wish.STOP if self._stopping else Wish.GO_ON

    def stop(self) -> None:
        self._stopping = True


# --- after training ------------------------------------------------------------------------------------------


def _conclude(
    job: Job, dataset: Dataset, place: Place, uri: str, tracked: str, say: Say, lineage: Mapping[str, str]
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

    say("\n" + run_report.score_table(rows) + "\n\n" + how + "\n\n" + run_report.conclusion(rows) + "\n")
    if registered:
        say(f"model      {registered.name} version {registered.version}, alias candidate   {registered.uri}")
    for name in ("sheet.png", "restored.png"):
        if name in files:
            say(f"picture    {_shown(files[name])}")
    say(f"report     {_shown(files['report.md'])}")
    say(f"MLflow     {page_command(uri)}")


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
