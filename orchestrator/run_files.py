"""Names of the files that a run keeps in its folder of the store, and of its tags."""

from __future__ import annotations

pass


RESULT = "result.json"


RETENTION_RULE = "checkpoint_rule"
"""Key of a result: by which rule the job keeps checkpoints, the fields of a `Retention`."""


RUN_TAG = "mirage.run_id"
"""MLflow tag that holds a run's name, which is also that of its folder in the store."""


WEIGHTS = "weights.safetensors"


SCORES, JOB = "scores.json", "job.yaml"
"""What a trained version carries besides: its score on every held-out photograph, and the job that trained it."""


PROOFS_FOLDER = "proofs"


PROOF_RUNS = ("reference", "killed")
"""Below the storage: `proofs/<run>-<seed>-<number>/` holds the two runs."""
