"""Name the files in a run's folder and its MLflow tags."""

from __future__ import annotations

RESULT = "result.json"

RETENTION_RULE = "checkpoint_rule"
"""Key of `result.json`: the fields of the job's `Retention`."""

RUN_TAG = "mirage.run_id"
"""MLflow tag with a run's id, which is also the name of its folder in the store."""

WEIGHTS = "weights.safetensors"

SCORES, JOB = "scores.json", "job.yaml"
"""Files of a registered version: its score on every held-out photograph, and the job that trained it."""

UNPUBLISHED = "unpublished.json"
"""File in a run's folder on this machine while the result still has to be registered or tracked."""

PROOFS_FOLDER = "proofs"

PROOF_RUNS = ("reference", "killed")
"""Runs of a resume proof, in `proofs/<run>-<seed>-<number>/` below the storage."""
