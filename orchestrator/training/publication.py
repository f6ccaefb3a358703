"""Publish a finished run: register its model, restore the example, write the report, and print the summary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from orchestrator import events
from orchestrator.config.loader import dump_job
from orchestrator.config.schema import Job
from orchestrator.data import datasets
from orchestrator.data.preview import first_draws, preview_sheet
from orchestrator.errors import (
    CheckpointError,
    DamagedResultError,
    ModelError,
    RegistryError,
    RegistryUnavailableError,
    TrackingError,
)
from orchestrator.evaluation import score_table
from orchestrator.evaluation.model_card import model_card
from orchestrator.evaluation.previews import comparison_sheet, validation_items
from orchestrator.evaluation.scores import DegradationScore, as_metrics, from_records, summarise
from orchestrator.events import Emit
from orchestrator.history.record import History
from orchestrator.history.recorder import Recorder
from orchestrator.history.report_html import run_page
from orchestrator.history.store import REPORT, read_history
from orchestrator.imaging.convert import encode_picture, png_bytes, to_float, to_uint8
from orchestrator.masking import without_password
from orchestrator.models import network, network_file, trust
from orchestrator.models.network_code import NetworkCode
from orchestrator.outputs import write_output
from orchestrator.paths import shortened
from orchestrator.planning import throughput
from orchestrator.registry import registration
from orchestrator.registry.resolve import find_model
from orchestrator.registry.versions import ModelVersion
from orchestrator.run_files import JOB, RESULT, RUN_TAG, SCORES, UNPUBLISHED
from orchestrator.tracking import runs
from orchestrator.tracking.background import Tracker
from orchestrator.tracking.inputs import inputs_of
from orchestrator.tracking.uri import page_command
from orchestrator.training.context import RunContext
from orchestrator.training.finite import require_finite_scores
from orchestrator.training.recording import facts_of
from orchestrator.training.result import run_result
from orchestrator.training.run_location import RunLocation
from orchestrator.version import code_version
from shards.errors import CorruptObjectError, MissingObjectError
from shards.store.checked import read_named

_DRAWS = 4
"""Draws of each pipeline in the report."""


def is_published(job: Job, location: RunLocation, uri: str) -> bool:
    """Return whether MLflow has all of a finished run: publishing it again writes nothing to the store."""
    if (location.folder / UNPUBLISHED).exists():
        return False
    try:
        result, name = run_result(location.store), job.track.register_as
        found = runs.find_run(uri, RUN_TAG, location.run_id, job.track.experiment)
        return (
            found is not None
            and found.finished
            and (not name or registration.is_registered(uri, name, _registration_key(location, result)))
        )
    except (MissingObjectError, DamagedResultError, TrackingError, RegistryUnavailableError):
        return False


def publish(
    run: RunContext,
    tracker: Tracker | None,
    emit: Emit,
    *,
    tracked: bool = False,
    recorder: Recorder | None = None,
) -> None:
    """Print and publish the result in the run's folder. Repeating it changes nothing.

    `tracker` is None if MLflow could not be reached; `tracked`: the run in MLflow has the result. `recorder`: of a run
    that this process has just trained. What MLflow does not
    take now waits on this machine for `mirage sync` or for the next submission of the job.
    """
    result = run_result(run.location.store)
    if not tracked:
        throughput.store_throughput(run.job, run.location.run_id, result.get("pace"))
    measured = from_records(result["scores"])
    require_finite_scores(measured)
    scores = summarise(measured, run.job.evaluate.degradations)
    averaging = "EMA" if result["averaged"] else "raw"
    images = max(score.n for score in scores[:-1])  # the last one is the mean
    pipelines = datasets.evaluated_pipelines(run.job)
    legend = score_table.legend(run.job.evaluate.protocol, run.job.recipe, averaging, images, pipelines)
    report = [score_table.score_table(scores), legend, score_table.conclusion(scores)]
    emit(events.LogMessage("\n" + "\n\n".join(report) + "\n"))

    if tracker and not tracked:
        tracker.metrics(result["step"], as_metrics(scores, "test"))
    try:
        weights = read_named(run.location.store, result["weights"])
    except CorruptObjectError as error:
        raise CheckpointError(
            f"{error} To make it again, delete it and {run.location.store.uri}/{RESULT}, and submit the job again: it "
            "continues from its newest checkpoint."
        ) from error
    code = _trusted_code(run.job, weights)
    card = model_card(run.job, run.dataset, scores, legend, run.location.run_id, code_version(), code)
    registered, pictures = _register_and_restore(run, tracker, result, scores, weights, card, emit)
    event = None
    if registered:
        event = events.ModelRegistered(registered.name, str(registered.version), registered.uri)
    if recorder is not None:
        if event:
            recorder.add(event)
        recorder.history.score(scores[-1].psnr)
        recorder.close("finished")
    contents = {
        **pictures,
        REPORT: _report_page(run, recorder, scores, legend, pictures, event).encode(),
        "report.md": score_table.markdown_report(scores, run.location.run_id, legend).encode(),
        "scores.json": json.dumps(result["scores"], indent=1).encode(),
        "model-card.md": card.encode(),
    }
    files = _write_changed(run.location.folder, contents)
    if tracker and not tracked:
        for name, content in contents.items():
            tracker.artifact(name, content)
        tracker.end("FINISHED")
    if event:
        emit(event)
    shown = {name: shortened(path) for name, path in files.items()}
    emit(events.RunFinished(run.location.run_id, shown, page_command(run.tracking_uri)))


def _trusted_code(job: Job, weights: bytes) -> NetworkCode | None:
    """Return the code that the weights bring, and trust it if it is what the author of the job has had imported here.

    Raises RegistryError if it is not, and the job registers its model.
    """
    carried = network_file.code_of(weights)
    if carried is None:
        return None
    try:
        imported = network.code(job.model)
    except ModelError:  # such a network trains, but cannot be registered
        imported = None
    if imported and imported.digest == carried.digest:
        trust.remember(carried)
    elif job.track.register_as:
        raise RegistryError(
            f"{job.track.register_as}: not registered: the source of {carried.class_} has changed since the workers "
            "imported it. `mirage network-code RUN -o FOLDER` writes the source that the weights carry: put it back, "
            "and submit the job again."
        )
    return carried


def _report_page(
    run: RunContext,
    recorder: Recorder | None,
    scores: list[DegradationScore],
    legend: str,
    pictures: Mapping[str, bytes],
    registered: events.ModelRegistered | None,
) -> str:
    """Return report.html from what this process recorded, else from the record in the store, if there is one."""
    history = recorder.history if recorder else read_history(run.location.store)
    model = registered.words if registered else ""
    sheet, drawn = pictures["sheet.png"], pictures.get("degradations.jpg")
    return run_page(history or History(facts_of(run)), scores, legend, sheet, model, drawn)


def _register_and_restore(
    run: RunContext,
    tracker: Tracker | None,
    result: Mapping[str, Any],
    scores: list[DegradationScore],
    weights: bytes,
    card: str,
    emit: Emit,
) -> tuple[ModelVersion | None, dict[str, bytes]]:
    """Register the model if the job says so; return its version and the run's pictures.

    If MLflow fails, the registration waits in a file of the run's folder.
    """
    waiting = run.location.folder / UNPUBLISHED
    try:
        if tracker is None:
            raise RegistryUnavailableError(f"MLflow at {without_password(run.tracking_uri)} did not answer.")
        registered = _register(run, result, scores, weights, card) if run.job.track.register_as else None
        pictures = _pictures(run, weights, registered)
        waiting.unlink(missing_ok=True)
        return registered, pictures
    except RegistryUnavailableError as error:
        _write_changed(run.location.folder, {UNPUBLISHED: unpublished(run)})
        what = "The model is not registered" if run.job.track.register_as else "The result is not in MLflow"
        emit(
            events.LogMessage(
                f"{error} {what} yet: call `mirage sync` or submit the job again when MLflow is back.",
                "warning",
            )
        )
        return None, _pictures(run, weights, None)


def unpublished(run: RunContext) -> bytes:
    """Return what `mirage sync` needs to publish the run."""
    content = {
        "job": dump_job(run.job),
        "digests": list(run.dataset.digests),
        "lineage": dict(run.lineage),
    }
    return json.dumps(content, indent=1).encode()


def _register(
    run: RunContext, result: Mapping[str, Any], scores: list[DegradationScore], weights: bytes, card: str
) -> ModelVersion:
    job = run.job
    assert job.track.register_as is not None, "called for jobs that register"
    evaluated = inputs_of(run.dataset, "test", "evaluation")
    return registration.register(
        run.tracking_uri,
        job.track.register_as,
        run_id=run.tracking_id,
        weights=weights,
        card=card,
        metrics=as_metrics(scores, "test"),
        measured_on=evaluated[0] if len(evaluated) == 1 else None,
        tags={
            **{name: value for name, value in run.lineage.items() if not name.startswith("mlflow.")},
            RUN_TAG: run.location.run_id,
            "recipe": job.recipe,
            "protocol": job.evaluate.protocol,
            "data": ", ".join(run.dataset.digests),
        },
        idempotency_key=_registration_key(run.location, result),
        files={JOB: dump_job(job).encode(), SCORES: _scores_file(run, result)},
    )


def _registration_key(location: RunLocation, result: Mapping[str, Any]) -> str:
    return f"{location.run_id}:{result['weights']}"


def _scores_file(run: RunContext, result: Mapping[str, Any]) -> bytes:
    """Return the score of every photograph, with what decides whether two models are comparable."""
    protocol = {
        "protocol": run.job.evaluate.protocol,
        "data": list(run.dataset.digests),
        "pipelines": datasets.evaluated_pipelines(run.job),
        "recipe": run.job.recipe,
        "weights": "EMA" if result["averaged"] else "raw",
    }
    return json.dumps({**protocol, "scores": result["scores"]}, indent=1).encode()


def _pictures(run: RunContext, weights: bytes, registered: ModelVersion | None) -> dict[str, bytes]:
    """Return the comparison sheet and the job's example, restored with the registered model if there is one."""
    held_out = datasets.evaluation_set(run.dataset, run.job)
    cpu = torch.device("cpu")
    restore = network.restore_function(network.read(run.job.model, weights))
    pictures = {"sheet.png": comparison_sheet(validation_items(held_out, run.job.validation), restore, cpu)}
    if run.job.degradations:
        drawn = first_draws(run.job, run.dataset, _DRAWS)
        shown = {name: each for name, each in drawn.items() if name in run.job.degradations and each}
        if shown:
            pictures["degradations.jpg"] = encode_picture(preview_sheet(shown), Path("degradations.jpg"))
    if run.job.example is None:
        return pictures
    wanted = (datasets.example_id(run.dataset, run.job, run.job.example), run.job.example.degradation)
    item = next(item for item in held_out.items(0, 1) if (item.id, item.degradation) == wanted)
    if registered is not None:
        restore = find_model(registered.uri, run.tracking_uri).load(cpu).restore
    restored = to_uint8(restore(to_float(item.degraded, cpu)))
    return pictures | {"restored.png": png_bytes(restored), "degraded.png": png_bytes(item.degraded)}


def _write_changed(folder: Path, contents: Mapping[str, bytes]) -> dict[str, Path]:
    """Write the files whose content differs; return all paths."""
    for name, content in contents.items():
        path = folder / name
        if not (path.is_file() and path.read_bytes() == content):
            write_output(path, content)
    return {name: folder / name for name in contents}
