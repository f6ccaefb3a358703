"""Run a job of kind `evaluate`: distribute the images, collect the results, compute the scores, report them.

    weights/<sha256>      the weights that are evaluated
    pieces/NNNNN.json     results of one chunk of images
    images.parquet        results of all images
    summary.json          every score with its interval and all that it depends on; written last

A job that is submitted again continues with the chunks that are missing; a finished one is reported again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from mirage.metrics import PROTOCOLS
from orchestrator.config.job_schemas import EvaluateJob
from orchestrator.config.job_types import JobOutcome
from orchestrator.config.loader import dump_job
from orchestrator.config.pipelines import pipelines_of
from orchestrator.console import Echo
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
from orchestrator.evaluation.image_results import IMAGES, ImageResult, to_parquet
from orchestrator.evaluation.model_under_test import (
    ModelIdentity,
    ModelUnderTest,
    build_model,
    fetch_weights,
    identify,
)
from orchestrator.evaluation.summary import SUMMARY, EvaluationSummary, render, summary_bytes
from orchestrator.masking import masked, without_password
from orchestrator.outputs import write_output
from orchestrator.paths import below, home
from orchestrator.progress import progress
from orchestrator.signals import on_stop
from orchestrator.tracking import finished_runs, runs
from orchestrator.tracking.finished_runs import FinishedRun
from orchestrator.tracking.uri import page_command, resolve_tracking_uri
from orchestrator.version import code_version
from shards.dataset import Dataset
from shards.errors import ShardsError
from shards.store import Store, open_store

EVALUATION_TAG = "mirage.evaluation_id"


EvaluateChunks = Callable[
    [EvaluateJob, EvaluationSpec, Sequence[int], Echo], Iterator[tuple[int, list[ImageResult]]]
]
"""Evaluates chunks in any order and yields each with its results; ends early on SIGTERM or Ctrl-C."""


@dataclass(frozen=True)
class _Evaluation:
    name: str
    job: EvaluateJob
    benchmarks: Benchmarks
    identity: ModelIdentity
    model: ModelUnderTest
    store: Store


def run_evaluation(job: EvaluateJob, echo: Echo, *, in_process: bool = False) -> JobOutcome:
    """Evaluate the job's model on its benchmarks and report progress and results through `echo`."""
    datasets = data.open_benchmarks(job)
    benchmarks = Benchmarks(job, datasets)
    weights = fetch_weights(job.model, job.track.uri)
    identity = identify(job.model, weights)
    model = build_model(job.model, weights, torch.device("cpu"), job.evaluate.precision)
    echo(_plan(job, benchmarks) + "\n")

    name = evaluation_id(job, datasets, identity)
    store = open_store(f"{below(job.storage, 'evaluations')}/{name}")
    store.ensure_bucket()
    evaluation = _Evaluation(name, job, benchmarks, identity, model, store)
    images = len(benchmarks.items)
    if store.exists(SUMMARY):
        echo(f"evaluation {name} is already finished; this is its result")
    else:
        key = f"weights/{identity.digest}" if weights else ""
        if key:
            store.write(key, weights)
        digests = tuple(digest for dataset in datasets for digest in dataset.digests)
        spec = EvaluationSpec(job.model_dump(mode="json"), digests, store.uri, key, str(home()))
        remaining = _evaluate_missing(evaluation, spec, echo, _in_process if in_process else _on_ray)
        if remaining:
            echo(f"stopped after {images - remaining} of {images} images. Run the job again to continue.")
            return JobOutcome("stopped", images - remaining, images)
    _report(evaluation, echo)
    return JobOutcome("finished", images, images)


def plan_evaluation(job: EvaluateJob) -> str:
    """Return what the job will evaluate, or why its data cannot be used."""
    try:
        return _plan(job, Benchmarks(job, data.open_benchmarks(job)))
    except ShardsError as error:
        return f"{_head(job)}\nwarning: the data cannot be used as it is. {error}"


def evaluation_id(job: EvaluateJob, datasets: Sequence[Dataset], identity: ModelIdentity) -> str:
    """Return the job's name and a digest of everything that its numbers depend on."""
    content = job.model_dump(mode="json", include={"seed", "model", "evaluate"})
    del content["model"]["trust"]  # a consent changes no number
    if job.degradations:
        content["degradations"] = {name: each.digest for name, each in pipelines_of(job).items()}
    digests = [digest for dataset in datasets for digest in dataset.digests]
    text = json.dumps([content, digests, asdict(identity)], sort_keys=True)
    return f"{job.name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def _evaluate_missing(
    evaluation: _Evaluation, spec: EvaluationSpec, echo: Echo, evaluate: EvaluateChunks
) -> int:
    """Evaluate the chunks that are not done; return how many images are left, after a stop or the maximum runtime."""
    benchmarks, job = evaluation.benchmarks, evaluation.job
    finished = done_chunks(evaluation.store)
    missing = [chunk for chunk in benchmarks.chunks() if chunk not in finished]
    resumed = f" continues: {len(finished)} of {len(benchmarks.chunks())} chunks are done" if finished else ""
    echo(f"evaluation {evaluation.name}{resumed}")

    images = len(benchmarks.items)
    left = sum(len(benchmarks.chunk(chunk)) for chunk in missing)
    began, hours = time.monotonic(), job.workers.max_runtime_hours
    with progress(echo, "evaluating") as (advance,):
        advance(images - left, images, "")
        for chunk, results in evaluate(job, spec, missing, echo):
            left -= len(benchmarks.chunk(chunk))
            last = results[-1]
            advance(images - left, images, f"{last.degradation} {last.image} {last.psnr:.2f} dB")
            if left and hours is not None and time.monotonic() - began > 3600 * hours:
                echo(f"workers.max_runtime_hours ({hours:g}) is over")
                break
    return left


def _in_process(
    job: EvaluateJob, spec: EvaluationSpec, chunks: Sequence[int], echo: Echo
) -> Iterator[tuple[int, list[ImageResult]]]:
    stopping: list[bool] = []
    with on_stop(lambda: stopping.append(True)):
        worker = EvaluationWorker(spec)
        for chunk in chunks:
            if stopping:
                return
            yield chunk, worker.evaluate(chunk)


def _on_ray(
    job: EvaluateJob, spec: EvaluationSpec, chunks: Sequence[int], echo: Echo
) -> Iterator[tuple[int, list[ImageResult]]]:
    from orchestrator.cluster.connection import connected
    from orchestrator.evaluation.ray_workers import evaluate_on_ray

    with connected():
        yield from evaluate_on_ray(job, spec, chunks, echo)


def _report(evaluation: _Evaluation, echo: Echo) -> None:
    """Compute the scores of all images, write the report's files, track them in MLflow, and print where they are."""
    job, store = evaluation.job, evaluation.store
    results = [one for chunk in evaluation.benchmarks.chunks() for one in read_results(store, chunk)]
    scores = aggregate(results, evaluation.identity, job.evaluate.noise)
    summary = EvaluationSummary(
        evaluation.name,
        job.name,
        evaluation.identity,
        evaluation.model.parameters,
        evaluation.model.macs,
        code_version(),
        tuple(scores),
    )
    if not store.exists(SUMMARY):
        if not store.exists(IMAGES):
            store.write(IMAGES, to_parquet(results))
        store.write(SUMMARY, summary_bytes(summary))
    text = render(summary)
    content = {
        SUMMARY: store.read(SUMMARY),
        IMAGES: store.read(IMAGES),
        "report.md": f"# {evaluation.name}\n\n```\n{text}\n```\n".encode(),
    }
    if job.evaluate.pictures:
        content["extremes.png"] = extremes_sheet(
            results, evaluation.benchmarks, evaluation.model, job.evaluate.pictures
        )
    folder = home() / "evaluations" / evaluation.name
    files = {name: folder / name for name in content}
    for name, file in files.items():
        write_output(file, content[name])
    uri = resolve_tracking_uri(job.track.uri)
    echo("\n" + text + "\n")
    for file in files.values():
        echo(f"{file.name:<15} {file}")
    echo(f"{'MLflow':<15} {page_command(uri)}")
    _track(evaluation, scores, content, uri, echo)


def _track(
    evaluation: _Evaluation,
    scores: Sequence[AggregateScore],
    content: Mapping[str, bytes],
    uri: str,
    echo: Echo,
) -> None:
    """Send the scores and files to MLflow as a run, once, and what earlier evaluations left for it."""
    job, identity = evaluation.job, evaluation.identity
    tags = {
        "mirage.code_version": code_version(),
        "mirage.data": ", ".join(data.manifest_uris(job)),
        "mirage.model_sha256": identity.digest,
        "mirage.recipe": identity.recipe,
        "mirage.weights": identity.weights,
        "mirage.protocols": ", ".join(job.evaluate.protocols),
    }
    run = FinishedRun(
        server=without_password(uri),
        experiment=job.track.experiment,
        name=evaluation.name,
        key=EVALUATION_TAG,
        tags=masked(tags),
        params=runs.flat_params(job.model_dump(mode="json", exclude_none=True)),
        metrics={metric_name(score): score.value for score in scores},
    )
    finished_runs.keep(home() / "spool", run, {"job.yaml": dump_job(job).encode(), **content})
    for sent in finished_runs.send_kept(uri, home() / "spool"):
        if sent.problem:
            echo(f"warning: {sent.name} is not in MLflow yet: {sent.problem} To send it: mirage sync")


def metric_name(score: AggregateScore) -> str:
    """Return the name of a score among the metrics of a run."""
    source = f"-{score.source}" if score.source not in ("", score.dataset) else ""
    subset = "" if score.subset == "all" else f"-{score.subset}"
    return f"test/{score.dataset}{source}{subset}/{score.degradation}/{score.protocol}/{score.metric}"


def _head(job: EvaluateJob) -> str:
    return (
        f"job {job.name}   kind evaluate   model {job.model.class_ or job.model.weights}   seed {job.seed}\n"
    )


def _plan(job: EvaluateJob, benchmarks: Benchmarks) -> str:
    crops = len(benchmarks.crops)
    device = f"{job.workers.gpus:g} GPU" if job.workers.gpus else f"{job.workers.cpus:g} CPU"
    return "\n".join(
        [
            _head(job),
            *(f"data       {one.uris[0]}, manifest {one.digests[0][:16]}" for one in benchmarks.datasets),
            *(
                f"             {name:<12} {degradation:<14} {count:>6,} images"
                for (name, degradation), count in benchmarks.counts().items()
            ),
            *(f"protocol   {name}: {PROTOCOLS[name].description}" for name in job.evaluate.protocols),
            f"restores   {len(benchmarks.items):,} images ({crops} crop{'s' if crops > 1 else ''} of each) in "
            f"{len(benchmarks.chunks())} chunks of {benchmarks.chunk_size}; noise {job.evaluate.noise}; "
            f"{job.evaluate.precision}; LPIPS {job.evaluate.lpips}",
            f"workers    {job.workers.min} to {job.workers.max} of {device}",
        ]
    )
