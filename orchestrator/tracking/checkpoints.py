"""Show the checkpoints of a run in MLflow, one LoggedModel for each that the store keeps.

MLflow's page can then sort checkpoints by their validation metrics. A LoggedModel holds no files: its tag
`mirage.checkpoint` names the checkpoint in the store, which the run alone writes and deletes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.tracking.inputs import InputDataset

CHECKPOINT_TAG = "mirage.checkpoint"
"""URI of the record of a checkpoint."""
MODEL_TYPE = "checkpoint"


@dataclass(frozen=True)
class TrackedCheckpoint:
    """A checkpoint as MLflow shows it."""

    uri: str
    """URI of its record in the store."""
    step: int
    metrics: Mapping[str, float]
    """Metrics of the newest validation before it."""


def sync_checkpoints(
    client: Any,
    run_id: str,
    checkpoints: Sequence[TrackedCheckpoint],
    params: Mapping[str, object],
    validated_on: InputDataset | None,
) -> None:
    """Make the run's LoggedModels those of `checkpoints`: create what is missing and delete what is gone.

    One that an interrupted call left without its metrics is replaced. `params` describe each of them; `validated_on`
    is the dataset of their metrics. A repeated call changes nothing. Raises MLflow's errors.
    """
    run = client.get_run(run_id)
    models = _logged(client, run.info.experiment_id, run_id)
    wanted = {one.uri: one for one in checkpoints}
    known = {uri for uri, model in models.items() if model.status == "READY" and uri in wanted}
    for uri in models.keys() - known:
        client.delete_logged_model(models[uri].model_id)
    for uri in sorted(wanted.keys() - known):
        _log(client, run, wanted[uri], params, validated_on)


def log_model_metrics(
    client: Any,
    run_id: str,
    model_id: str,
    step: int,
    metrics: Mapping[str, float],
    dataset: InputDataset | None,
) -> None:
    """Log the finite ones of `metrics` to a LoggedModel as measured on `dataset`."""
    from mlflow.entities import Metric

    now = time.time_ns() // 1_000_000
    name, digest = (dataset.name, dataset.short_digest) if dataset else (None, None)
    entities = [
        Metric(key, value, now, step, model_id, name, digest, run_id)
        for key, value in metrics.items()
        if math.isfinite(value)
    ]
    if entities:
        client.log_batch(run_id, metrics=entities)


def _logged(client: Any, experiment_id: str, run_id: str) -> dict[str, Any]:
    """Return the LoggedModels of the run's checkpoints by the URI of the checkpoint."""
    found: dict[str, Any] = {}
    token = None
    while True:
        page = client.search_logged_models(
            [experiment_id],
            filter_string=f"source_run_id = '{run_id}' AND model_type = '{MODEL_TYPE}'",
            page_token=token,
        )
        found |= {model.tags[CHECKPOINT_TAG]: model for model in page if CHECKPOINT_TAG in model.tags}
        token = page.token
        if not token:
            return found


def _log(
    client: Any,
    run: Any,
    checkpoint: TrackedCheckpoint,
    params: Mapping[str, object],
    validated_on: InputDataset | None,
) -> None:
    from mlflow.entities import LoggedModelOutput

    model = client.create_logged_model(
        run.info.experiment_id,
        name=f"{run.info.run_name}-step-{checkpoint.step}",
        source_run_id=run.info.run_id,
        tags={CHECKPOINT_TAG: checkpoint.uri},
        params={key: str(value) for key, value in params.items()},
        model_type=MODEL_TYPE,
    )
    client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, checkpoint.step)])
    log_model_metrics(
        client, run.info.run_id, model.model_id, checkpoint.step, checkpoint.metrics, validated_on
    )
    client.finalize_logged_model(model.model_id, "READY")  # last: the mark of a complete one
