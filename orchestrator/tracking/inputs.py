"""Record in MLflow which packed datasets a run read.

MLflow shows them under "Datasets" of the run, and attaches metrics to them by name and digest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.masking import without_password
from orchestrator.tracking.client import connect
from orchestrator.tracking.failures import tracking_errors
from shards.dataset import Dataset

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

MLFLOW_DIGEST_LENGTH = 36
"""Longest digest of a dataset that MLflow stores; ours has 64 characters and is in a tag as a whole."""


@dataclass(frozen=True)
class InputDataset:
    """Samples of a packed dataset that a run reads."""

    name: str
    digest: str
    """SHA-256 of the manifest."""
    uri: str
    context: str
    """What the run does with it: `training`, `validation` or `evaluation`."""
    samples: Mapping[str, int]
    """Degradation → number of samples."""

    @property
    def short_digest(self) -> str:
        """The digest as MLflow stores it."""
        return self.digest[:MLFLOW_DIGEST_LENGTH]


def inputs_of(dataset: Dataset, split: str, context: str, limit: int | None = None) -> list[InputDataset]:
    """Return what a run reads of `split`: at most `limit` samples of each degradation.

    MLflow lists a dataset once per run, so each context has a name of its own: `demo`, `demo-validation`.
    """
    return [
        InputDataset(
            manifest.name if context == "training" else f"{manifest.name}-{context}",
            manifest.digest,
            without_password(uri),
            context,
            {degradation: min(number, limit or number) for degradation, number in counts.items()},
        )
        for uri, manifest in zip(dataset.uris, dataset.manifests, strict=True)
        if (counts := manifest.counts().get(split))
    ]


def log_inputs(tracking_uri: str, run_id: str, inputs: Iterable[InputDataset]) -> None:
    """Record the datasets as inputs of a run; a repeated call changes nothing. Raises TrackingError."""
    entities = [_entity(one) for one in inputs]
    with tracking_errors(tracking_uri):
        connect(tracking_uri).log_inputs(run_id, datasets=entities)


def _entity(one: InputDataset) -> DatasetInput:
    from mlflow.entities import Dataset as MlflowDataset
    from mlflow.entities import DatasetInput, InputTag

    scheme = one.uri.partition("://")[0] if "://" in one.uri else "local"
    profile = {"samples": sum(one.samples.values()), "samples_by_degradation": dict(one.samples)}
    entity = MlflowDataset(
        one.name, one.short_digest, scheme, json.dumps({"uri": one.uri}), profile=json.dumps(profile)
    )
    tags = [InputTag("mlflow.data.context", one.context), InputTag("mirage.digest", one.digest)]
    return DatasetInput(entity, tags)
