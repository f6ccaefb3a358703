"""The work of an evaluation, cut into chunks that any worker can do in any order, each leaving one object behind.

    pieces/00003.json     results of the images of chunk 3, written once

The images of a job are a fixed list; a chunk is a fixed part of it. What is done is what is in the store, so a job
that was killed goes on by doing what is not there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from orchestrator.config.job_schemas import EvaluateJob
from orchestrator.config.loader import job_from_mapping
from orchestrator.data import datasets as data
from orchestrator.errors import PlanError
from orchestrator.evaluation.image_results import (
    ImageResult,
    PerceptualDistance,
    evaluate_image,
    protocols_by_crop,
)
from orchestrator.evaluation.lpips import load_lpips
from orchestrator.evaluation.model_under_test import ModelUnderTest, build_model
from shards.dataset import Dataset
from shards.evaluation import EvaluationSet
from shards.sample import NOISE, SIGMA
from shards.store import Store, open_store

_CHUNKS = 64
_LARGEST = 16
"""A job is cut into about this many chunks, and a chunk holds at most this many images."""


@dataclass(frozen=True)
class EvaluationSpec:
    """What a worker needs to know: plain data, so that it pickles."""

    job: dict[str, Any]
    digests: tuple[str, ...]
    """Which data it is, whatever is published at its URIs meanwhile."""
    uri: str
    """The evaluation's folder in the store."""
    weights: str
    """Key of the weights in it; "" for a class judged as it is made."""
    home: str


@dataclass(frozen=True)
class WorkItem:
    """One image to restore once."""

    crop: int
    manifest: int
    index: int


class Benchmarks:
    """The held-out images of a job: one set per dataset and crop, and the fixed list over all of them."""

    def __init__(self, job: EvaluateJob, datasets: Sequence[Dataset]) -> None:
        self.datasets = list(datasets)
        self.crops = protocols_by_crop(job.evaluate.protocols)
        self.sets: dict[tuple[int, int], EvaluationSet] = {}
        self.units: list[WorkItem] = []
        for crop in self.crops:
            for number, dataset in enumerate(self.datasets):
                wanted = _wanted(job, dataset)
                if not wanted:
                    continue
                held = EvaluationSet(dataset, wanted, job.seed, crop, job.evaluate.noise)
                self.sets[crop, number] = held
                self.units += [WorkItem(crop, number, index) for index in range(len(held))]
        self._check(job)

    @property
    def chunk_size(self) -> int:
        """Images per chunk."""
        return min(_LARGEST, -(-len(self.units) // _CHUNKS)) or 1

    def chunks(self) -> range:
        """The chunks' numbers."""
        return range(-(-len(self.units) // self.chunk_size))

    def chunk(self, number: int) -> list[WorkItem]:
        """The images of one chunk."""
        return self.units[number * self.chunk_size : (number + 1) * self.chunk_size]

    def counts(self) -> dict[tuple[str, str], int]:
        """Images to restore by (dataset, degradation), under the first crop."""
        first = next(iter(self.crops))
        found: dict[tuple[str, str], int] = {}
        for unit in self.units:
            if unit.crop == first:
                degradation, _ = self.sets[unit.crop, unit.manifest].name(unit.index)
                key = (self.datasets[unit.manifest].manifests[0].name, degradation)
                found[key] = found.get(key, 0) + 1
        return found

    def _check(self, job: EvaluateJob) -> None:
        held = {degradation for _, degradation in self.counts()} if self.units else set()
        missing = [d for d in job.evaluate.degradations if d not in held]
        if missing or not self.units:
            there = "; ".join(f"{d.uris[0]}: {d.available('test')}" for d in self.datasets)
            raise PlanError(
                f"evaluate.degradations: no test image shows {', '.join(missing) or 'anything'}. There are: {there}. "
                "Pack that benchmark, or do not judge it."
            )


class EvaluationWorker:
    """One process that judges chunks."""

    def __init__(self, assignment: EvaluationSpec) -> None:
        os.environ["MIRAGE_HOME"] = assignment.home
        job = job_from_mapping(assignment.job)
        assert isinstance(job, EvaluateJob), "only evaluations are judged"
        torch.set_num_threads(max(1, int(job.workers.cpus)))
        self._store = open_store(assignment.uri)
        self._benchmarks = Benchmarks(job, data.open_benchmarks(job, assignment.digests))
        self._device = torch.device("cuda" if job.workers.gpus and torch.cuda.is_available() else "cpu")
        weights = self._store.read(assignment.weights) if assignment.weights else b""
        self._candidate: ModelUnderTest = build_model(
            job.model, weights, self._device, job.evaluate.precision
        )
        self._perceptual: PerceptualDistance | None = None
        if job.evaluate.lpips != "none":
            self._perceptual = load_lpips(job.evaluate.lpips, self._device)

    def judge(self, chunk: int) -> list[ImageResult]:
        """Judge the images of one chunk and leave their results in the store."""
        results: list[ImageResult] = []
        for unit in self._benchmarks.chunk(chunk):
            manifest = self._benchmarks.datasets[unit.manifest].manifests[0]
            results += evaluate_image(
                self._benchmarks.sets[unit.crop, unit.manifest][unit.index],
                self._candidate,
                self._benchmarks.crops[unit.crop],
                (manifest.name, manifest.digest),
                self._device,
                self._perceptual,
            )
        # Times differ when a chunk is done twice; what is there already stands.
        if not self._store.exists(results_key(chunk)):
            self._store.write(results_key(chunk), json.dumps([asdict(r) for r in results]).encode())
        return results


def results_key(chunk: int) -> str:
    """Key of a chunk's results."""
    return f"pieces/{chunk:05}.json"


def done_chunks(store: Store) -> set[int]:
    """Return the chunks whose results are in the store."""
    return {int(key.removeprefix("pieces/").partition(".")[0]) for key in store.list("pieces/")}


def read_results(store: Store, chunk: int) -> list[ImageResult]:
    """Return the results of a chunk that is done."""
    return [ImageResult(**record) for record in json.loads(store.read(results_key(chunk)))]


def _wanted(job: EvaluateJob, dataset: Dataset) -> list[str]:
    """Return the degradations to judge that the dataset's test split can show, in the job's order or its own."""
    (manifest,) = dataset.manifests
    labels = manifest.counts().get("test", {})
    held = [d for label in labels for d in (SIGMA if label == NOISE else (label,))]
    return [d for d in job.evaluate.degradations if d in held] if job.evaluate.degradations else held
