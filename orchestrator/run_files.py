"""Name the files in a run's folder and its MLflow tags, and read a run's result."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from orchestrator.errors import DamagedResultError
from orchestrator.records import RecordError, read_record
from shards.store import Store
from shards.store.checked import read_checked, record_digest

RESULT = "result.json"

RETENTION_RULE = "checkpoint_rule"
"""Key of `result.json`: the fields of the job's `Retention`."""

RUN_TAG = "mirage.run_id"
"""MLflow tag with a run's id, which is also the name of its folder in the store."""

WEIGHTS = "weights.safetensors"

DEGRADATIONS = "degradations"
"""Entry of the header of a run's weights: what it was trained to remove, separated by spaces."""

SCORES, JOB = "scores.json", "job.yaml"
"""Files of a registered version: its score on every held-out photograph, and the job that trained it."""

UNPUBLISHED = "unpublished.json"
"""File in a run's folder on this machine while the result still has to be registered or tracked."""

LOCATION = "location.txt"
"""File in a run's folder on this machine: the URI of its folder in the store."""

PROOFS_FOLDER = "proofs"

PROOF_RUNS = ("reference", "killed")
"""Runs of a resume proof, in `proofs/<run>-<seed>-<number>/` below the storage."""


_TYPES: Mapping[str, type] = {
    "step": int,
    "positions": int,
    "skipped_steps": int,
    "weights": str,
    "averaged": bool,
    "scores": list,
    RETENTION_RULE: dict,
}
"""Types of the keys of `result.json` that anything reads."""


def read_result(store: Store, required: Collection[str] = ("weights",)) -> dict[str, Any]:
    """Return the result of the run in `store`, which has the `required` keys.

    Raises MissingObjectError if the run has none, DamagedResultError if it is not the result of a run.
    """

    def parse(data: bytes) -> dict[str, Any]:
        try:
            return _checked_result(read_record(dict[str, Any], data), required)
        except RecordError as error:
            raise DamagedResultError(
                f"{store.uri}/{RESULT} is not the result of a run ({error}). Submit the job again: it is computed from "
                "the newest checkpoint."
            ) from error

    return read_checked(store, RESULT, parse, DamagedResultError)


def _checked_result(result: dict[str, Any], required: Collection[str]) -> dict[str, Any]:
    if "sha256" in result and result["sha256"] != record_digest(result):  # older results have none
        raise RecordError("it does not match its own checksum")
    for key in required:
        if key not in result:
            raise RecordError(f"{key} is missing")
    for key, kind in _TYPES.items():
        if key in result and not isinstance(result[key], kind):
            raise RecordError(f"{key} is {result[key]!r:.40}")
    return result
