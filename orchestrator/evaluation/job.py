"""A job of kind `evaluate` from its file to its end: share out the images, gather, count, show, track.

    weights/<sha256>      what is judged
    pieces/NNNNN.json     results image by image, as they come
    images.parquet        all of them
    summary.json          every figure with its interval and all that it depends on; written last

A job that is submitted again goes on where it was; one that is finished is reported again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mirage.metrics import PROTOCOLS
from orchestrator.config.job_schemas import EvaluateJob
from orchestrator.config.loader import dump_job
from orchestrator.console import Say
from orchestrator.data import datasets as data
from orchestrator.evaluation.aggregates import AggregateScore, aggregate
from orchestrator.evaluation.chunks import (
    Benchmarks,
    EvaluationSpec,
    EvaluationWorker,
    done_chunks,
    read_results,
)
from orchestrator.evaluation.extremes import extremes_sheet
from orchestrator.evaluation.image_results import ImageResult, to_parquet
from orchestrator.evaluation.model_under_test import ModelIdentity, build_model, fetch_weights, identify
from orchestrator.evaluation.summary import EvaluationSummary, render, summary_bytes
from orchestrator.paths import below, home
from orchestrator.signals import on_stop
from orchestrator.tracking import background, runs
from orchestrator.tracking.uri import page_command, resolve_tracking_uri, without_password
from orchestrator.version import code_version
from shards.dataset import Dataset
from shards.errors import ShardsError
from shards.store import Store, open_store

SUMMARY = "summary.json"
IMAGES = "images.parquet"
EVALUATION_TAG = "mirage.evaluation_id"

_TELL_SECONDS = 2.0

Scatter = Callable[[EvaluateJob, EvaluationSpec, Sequence[int], Say], Iterator[tuple[int, list[ImageResult]]]]
"""Judges chunks in any order and yields each with its results; ends early when it is asked to stop."""


@dataclass(frozen=True)
class EvaluationOutcome:
    """How an evaluation ended."""

    status: str
    """`finished`, or `stopped`: what is done is kept."""
    done: int
    """Images restored so far."""
    images: int


def run_evaluation(job: EvaluateJob, say: Say, *, in_process: bool = False) -> EvaluationOutcome:
    """Judge the job's model on its benchmarks and say what a user wants to know on the way."""
    uri = resolve_tracking_uri(job.track.uri)
    datasets = data.open_benchmarks(job)
    benchmarks = Benchmarks(job, datasets)
    weights = fetch_weights(job.model, job.track.uri)
    identity = identify(job.model, weights)
    build_model(
        job.model, weights, torch.device("cpu")
    )  # what cannot be built is told before anything starts
    say(_plan(job, benchmarks) + "\n")

    name = evaluation_id(job, datasets, identity)
    folder = f"{below(job.storage, 'evaluations')}/{name}"
    store = open_store(folder)
    store.ensure_bucket()
    key = f"weights/{identity.digest}" if weights else ""
    if key:
        store.write(key, weights)
    digests = tuple(digest for dataset in datasets for digest in dataset.digests)
    assignment = EvaluationSpec(job.model_dump(mode="json"), digests, folder, key, str(home()))

    done = done_chunks(store)
    missing = [chunk for chunk in benchmarks.chunks() if chunk not in done]
    if store.exists(SUMMARY):
        say(f"evaluation {name} is finished already; this is its result")
    else:
        say(
            f"evaluation {name}"
            + (f" goes on: {len(done)} of {len(benchmarks.chunks())} chunks are done" if done else "")
        )
        left = _judge(job, assignment, benchmarks, missing, say, _here if in_process else _on_ray)
        if left:
            images = len(benchmarks.units)
            return _stopped(say, images - sum(len(benchmarks.chunk(c)) for c in left), images)
    _conclude(job, benchmarks, identity, store, name, weights, uri, say)
    return EvaluationOutcome("finished", len(benchmarks.units), len(benchmarks.units))


def plan_evaluation(job: EvaluateJob) -> str:
    """Return what the job will judge, or why it cannot be said."""
    try:
        return _plan(job, Benchmarks(job, data.open_benchmarks(job)))
    except ShardsError as error:
        return f"{_head(job)}\nwarning: the data cannot be used as it is. {error}"


def evaluation_id(job: EvaluateJob, datasets: Sequence[Dataset], identity: ModelIdentity) -> str:
    """Return the identity of the evaluation: its name and a digest of all that its numbers depend on."""
    content = job.model_dump(mode="json", include={"seed", "model", "evaluate"})
    digests = [digest for dataset in datasets for digest in dataset.digests]
    text = json.dumps([content, digests, asdict(identity)], sort_keys=True)
    return f"{job.name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


# --- judging -------------------------------------------------------------------------------------------------


def _judge(
    job: EvaluateJob,
    assignment: EvaluationSpec,
    benchmarks: Benchmarks,
    missing: list[int],
    say: Say,
    scatter: Scatter,
) -> list[int]:
    """Judge the missing chunks; return those that are still missing because the job was stopped or its time is over."""
    total = len(benchmarks.units)
    done = total - sum(len(benchmarks.chunk(chunk)) for chunk in missing)
    began, told, first = time.monotonic(), 0.0, done
    hours = job.workers.max_runtime_hours
    left = set(missing)
    for chunk, results in scatter(job, assignment, missing, say):
        left.discard(chunk)
        done += len(benchmarks.chunk(chunk))
        now = time.monotonic()
        if now - told > _TELL_SECONDS or not left:
            told = now
            each = (now - began) / max(done - first, 1)
            last = results[-1]
            say(
                f"judged {done}/{total}  {last.degradation} {last.image} {last.psnr:.2f} dB  "
                f"{each:.2f} s/image  {each * (total - done):.0f} s left"
            )
        if left and hours is not None and now - began > 3600 * hours:
            say(f"workers.max_runtime_hours ({hours:g}) is over")
            break
    return sorted(left)


def _here(
    job: EvaluateJob, assignment: EvaluationSpec, chunks: Sequence[int], say: Say
) -> Iterator[tuple[int, list[ImageResult]]]:
    """Judge in this process."""
    asked: list[bool] = []
    with on_stop(lambda: asked.append(True)):
        worker = EvaluationWorker(assignment)
        for chunk in chunks:
            if asked:
                return
            yield chunk, worker.judge(chunk)


def _on_ray(
    job: EvaluateJob, assignment: EvaluationSpec, chunks: Sequence[int], say: Say
) -> Iterator[tuple[int, list[ImageResult]]]:
    from orchestrator.cluster.connection import connected
    from orchestrator.evaluation.ray_workers import scatter

    with connected():
        yield from scatter(job, assignment, chunks, say)


def _stopped(say: Say, done: int, images: int) -> EvaluationOutcome:
    say(f"stopped with {done} of {images} images done. Submit the job again to go on.")
    return EvaluationOutcome("stopped", done, images)


# --- afterwards ----------------------------------------------------------------------------------------------


def _conclude(
    job: EvaluateJob,
    benchmarks: Benchmarks,
    identity: ModelIdentity,
    store: Store,
    name: str,
    weights: bytes,
    uri: str,
    say: Say,
) -> None:
    """Gather the pieces, count, draw, track, and say where everything is."""
    results = [one for chunk in benchmarks.chunks() for one in read_results(store, chunk)]
    found = aggregate(results, identity, job.evaluate.noise)
    candidate = build_model(job.model, weights, torch.device("cpu"), job.evaluate.precision)
    summary = EvaluationSummary(
        name, job.name, identity, candidate.parameters, candidate.macs, code_version(), tuple(found)
    )
    if not store.exists(SUMMARY):
        if not store.exists(IMAGES):
            store.write(IMAGES, to_parquet(results))
        store.write(SUMMARY, summary_bytes(summary))
    text = render(summary)
    folder = home() / "evaluations" / name
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {
        SUMMARY: folder / SUMMARY,
        IMAGES: folder / IMAGES,
        "report.md": folder / "report.md",
    }
    files[SUMMARY].write_bytes(store.read(SUMMARY))
    files[IMAGES].write_bytes(store.read(IMAGES))
    files["report.md"].write_text(f"# {name}\n\n```\n{text}\n```\n")
    if job.evaluate.pictures:
        files["extremes.png"] = folder / "extremes.png"
        files["extremes.png"].write_bytes(
            extremes_sheet(results, benchmarks, candidate, job.evaluate.pictures)
        )
    _track(job, name, identity, found, files, uri)
    say("\n" + text + "\n")
    for file in files.values():
        say(f"{file.name:<15} {file}")
    say(f"{'MLflow':<15} {page_command(uri)}")


def _track(
    job: EvaluateJob,
    name: str,
    identity: ModelIdentity,
    found: Sequence[AggregateScore],
    files: dict[str, Path],
    uri: str,
) -> None:
    """Leave the figures and files with a run in MLflow, once."""
    known = runs.find_run(uri, EVALUATION_TAG, name, job.track.experiment)
    if known is not None and known.finished:
        return
    tags = {
        EVALUATION_TAG: name,
        "mirage.code_version": code_version(),
        "mirage.data": ", ".join(data.manifest_uris(job)),
        "mirage.model_sha256": identity.digest,
        "mirage.recipe": identity.recipe,
        "mirage.weights": identity.weights,
        "mirage.protocols": ", ".join(job.evaluate.protocols),
    }
    shown = job.model_copy(
        update={
            "track": job.track.model_copy(update={"uri": job.track.uri and without_password(job.track.uri)})
        }
    )
    tracked = runs.start_run(
        uri,
        job.track.experiment,
        name,
        tags,
        runs.flat_params(shown.model_dump(mode="json", exclude_none=True)),
        resume_id=known.id if known else None,
    )
    values = {metric_name(f): f.value for f in found}
    background.log_metrics(uri, tracked, 0, values)
    runs.log_artifacts(uri, tracked, {"job.yaml": dump_job(shown).encode(), **files})
    runs.end_run(uri, tracked, "FINISHED")


def metric_name(figure: AggregateScore) -> str:
    """Return the name of a figure among a run's metrics."""
    source = f"-{figure.source}" if figure.source not in ("", figure.dataset) else ""
    subset = "" if figure.subset == "all" else f"-{figure.subset}"
    return f"test/{figure.dataset}{source}{subset}/{figure.degradation}/{figure.protocol}/{figure.metric}"


# --- saying --------------------------------------------------------------------------------------------------


def _head(job: EvaluateJob) -> str:
    what = job.model.class_ or job.model.weights
    return f"job {job.name}   kind evaluate   model {what}   seed {job.seed}\n"


def _plan(job: EvaluateJob, benchmarks: Benchmarks) -> str:
    lines = [_head(job)]
    for dataset in benchmarks.datasets:
        lines.append(f"data       {dataset.uris[0]}, manifest {dataset.digests[0][:16]}")
    for (name, degradation), count in benchmarks.counts().items():
        lines.append(f"             {name:<12} {degradation:<14} {count:>6,} images")
    for protocol in job.evaluate.protocols:
        lines.append(f"protocol   {protocol}: {PROTOCOLS[protocol].description}")
    lines.append(
        f"restores   {len(benchmarks.units):,} images ({len(benchmarks.crops)} crop"
        f"{'s' if len(benchmarks.crops) > 1 else ''} of each) in {len(benchmarks.chunks())} chunks of "
        f"{benchmarks.chunk_size}; noise {job.evaluate.noise}; {job.evaluate.precision}; LPIPS {job.evaluate.lpips}"
    )
    lines.append(
        f"workers    {job.workers.min} to {job.workers.max} of "
        + (f"{job.workers.gpus:g} GPU" if job.workers.gpus else f"{job.workers.cpus:g} CPU")
    )
    return "\n".join(lines)
