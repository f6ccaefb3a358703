"""The images of an evaluation as a fixed list, cut into chunks that workers evaluate in any order.

    pieces/00003.json     results of the images of chunk 3, written once

A chunk is done when its results are in the store, so a killed job continues with the chunks that are missing.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from orchestrator.config.job_schemas import EvaluateJob
from orchestrator.config.loader import job_from_mapping
from orchestrator.config.pipelines import pipelines_of
from orchestrator.data import datasets as data
from orchestrator.errors import EvaluationError, PlanError
from orchestrator.evaluation.image_results import (
    ImageResult,
    PerceptualDistance,
    evaluate_image,
    protocols_by_crop,
)
from orchestrator.evaluation.lpips import load_lpips
from orchestrator.evaluation.model_under_test import build_model
from orchestrator.records import RecordError, read_record
from shards.dataset import Dataset
from shards.evaluation import EvaluationSet
from shards.sample import NOISE, SIGMA
from shards.store import Store, open_store
from shards.store.checked import read_checked, read_named

_CHUNKS = 64
"""Number of chunks of a job, unless they would exceed `_MAX_CHUNK_SIZE`."""
_MAX_CHUNK_SIZE = 16


@dataclass(frozen=True)
class EvaluationSpec:
    """What a worker needs, as plain data that pickles."""

    job: dict[str, Any]
    digests: tuple[str, ...]
    """Digests of the datasets, so that all workers read the same data even if a URI is published again."""
    uri: str
    """The evaluation's folder in the store."""
    weights: str
    """Key of the weights in it; "" for a class that is evaluated with its initial weights."""
    home: str


@dataclass(frozen=True)
class WorkItem:
    """One image to restore."""

    crop: int
    dataset: int
    """Index among the job's datasets."""
    index: int
    """Index in the evaluation set of this crop and dataset."""


class Benchmarks:
    """The held-out images of a job: an evaluation set per crop and dataset, and one list over all of them."""

    def __init__(self, job: EvaluateJob, datasets: Sequence[Dataset]) -> None:
        self.datasets = list(datasets)
        self.crops = protocols_by_crop(job.evaluate.protocols)
        self.sets: dict[tuple[int, int], EvaluationSet] = {}
        pipelines = pipelines_of(job)
        for dataset in self.datasets:
            data.check_names(dataset, job)
        for crop in self.crops:
            for number, dataset in enumerate(self.datasets):
                degradations = _degradations(job, dataset)
                if degradations:
                    data.check_kernels(dataset, job, degradations)
                    self.sets[crop, number] = EvaluationSet(
                        *(dataset, degradations, job.seed, crop, job.evaluate.noise),
                        pipelines=pipelines,
                        pipeline_seed=job.seed,
                    )
        self.items = [
            WorkItem(*key, index) for key, images in self.sets.items() for index in range(len(images))
        ]
        self._check(job)

    @property
    def chunk_size(self) -> int:
        """Images per chunk."""
        return min(_MAX_CHUNK_SIZE, -(-len(self.items) // _CHUNKS)) or 1

    def chunks(self) -> range:
        """Return the numbers of the chunks."""
        return range(-(-len(self.items) // self.chunk_size))

    def chunk(self, number: int) -> list[WorkItem]:
        """Return the images of one chunk."""
        return self.items[number * self.chunk_size : (number + 1) * self.chunk_size]

    def counts(self) -> Counter[tuple[str, str]]:
        """Return the number of images by (dataset, degradation), under the first crop."""
        first = next(iter(self.crops))
        names = [dataset.manifests[0].name for dataset in self.datasets]
        return Counter(
            (names[item.dataset], self.sets[first, item.dataset].name(item.index)[0])
            for item in self.items
            if item.crop == first
        )

    def _check(self, job: EvaluateJob) -> None:
        found = {degradation for _, degradation in self.counts()}
        missing = [name for name in job.evaluate.degradations if name not in found]
        if missing or not self.items:
            available = "; ".join(f"{d.uris[0]}: {d.available('test')}" for d in self.datasets)
            raise PlanError(
                f"evaluate.degradations: no test image shows {', '.join(missing) or 'any degradation'}. "
                f"Available: {available}. Pack that benchmark, or remove it from the job."
            )


class EvaluationWorker:
    """One process that evaluates chunks."""

    def __init__(self, spec: EvaluationSpec) -> None:
        os.environ["MIRAGE_HOME"] = spec.home
        job = job_from_mapping(spec.job)
        assert isinstance(job, EvaluateJob), "the spec of an evaluation"
        torch.set_num_threads(max(1, int(job.workers.cpus)))
        self._store = open_store(spec.uri)
        self._benchmarks = Benchmarks(job, data.open_benchmarks(job, spec.digests))
        self._device = torch.device("cuda" if job.workers.gpus and torch.cuda.is_available() else "cpu")
        weights = read_named(self._store, spec.weights) if spec.weights else b""
        self._model = build_model(job.model, weights, self._device, job.evaluate.precision)
        self._perceptual: PerceptualDistance | None = None
        if job.evaluate.lpips != "none":
            self._perceptual = load_lpips(job.evaluate.lpips, self._device)

    def evaluate(self, chunk: int) -> list[ImageResult]:
        """Return the results of one chunk's images, and write them to the store."""
        results: list[ImageResult] = []
        for item in self._benchmarks.chunk(chunk):
            manifest = self._benchmarks.datasets[item.dataset].manifests[0]
            results += evaluate_image(
                self._benchmarks.sets[item.crop, item.dataset][item.index],
                self._model,
                self._benchmarks.crops[item.crop],
                (manifest.name, manifest.digest),
                self._device,
                self._perceptual,
            )
        key = results_key(chunk)
        if not self._store.exists(key):  # a repeated chunk has other times: the first one counts
            self._store.write(key, json.dumps([asdict(result) for result in results]).encode())
        return results


def results_key(chunk: int) -> str:
    """Return the key of a chunk's results."""
    return f"pieces/{chunk:05}.json"


def done_chunks(store: Store) -> set[int]:
    """Return the chunks whose results are in the store."""
    return {int(key.removeprefix("pieces/").partition(".")[0]) for key in store.list("pieces/")}


def read_results(store: Store, chunk: int) -> list[ImageResult]:
    """Return the results of a chunk that is done."""
    key = results_key(chunk)
    try:
        return read_checked(store, key, partial(read_record, list[ImageResult]), RecordError)
    except RecordError as error:
        raise EvaluationError(
            f"{store.uri}/{key} is damaged ({error}). Delete it and submit the job again: the chunk is measured again."
        ) from error


def _degradations(job: EvaluateJob, dataset: Dataset) -> list[str]:
    """Return the degradations of the job that the dataset's test split can show, all of them if the job has none."""
    (manifest,) = dataset.manifests
    labels = manifest.counts().get("test", {})
    clean = (*SIGMA, *job.degradations)
    shown = [name for label in labels for name in (clean if label == NOISE else (label,))]
    asked = job.evaluate.degradations
    return [name for name in asked if name in shown] if asked else shown
