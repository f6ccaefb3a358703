"""Read the result of a finished run. A damaged one is set aside, and computed again from the checkpoints."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Any

from pydantic import TypeAdapter

from orchestrator.config.schema import Job
from orchestrator.data import datasets
from orchestrator.errors import DamagedResultError
from orchestrator.evaluation.scores import ImageScore
from orchestrator.run_files import RESULT, read_result
from orchestrator.training.run_location import locate_run
from shards.errors import CorruptObjectError, MissingObjectError
from shards.store import Store
from shards.store.checked import digest_in

log = logging.getLogger(__name__)

_SCORES = TypeAdapter(list[ImageScore])
_MOMENTS = 6
_REQUIRED = ("step", "weights", "averaged", "scores")


def run_result(store: Store) -> dict[str, Any]:
    """Return everything that publishing a run needs. Raises MissingObjectError, DamagedResultError."""
    result = read_result(store, _REQUIRED)
    try:
        digest_in(result["weights"])
        scores = _SCORES.validate_json(json.dumps(result["scores"]), strict=True)
        if not scores or any(len(score.moments) != _MOMENTS for score in scores):
            raise ValueError("no scores")
    except (CorruptObjectError, ValueError, KeyError, TypeError) as error:
        problem = ": ".join(line.strip() for line in str(error).splitlines()[:3])
        raise DamagedResultError(f"{store.uri}/{RESULT} is not the result of a run ({problem}).") from error
    return result


def find_result(job: Job) -> dict[str, Any]:
    """Return the result of the finished run of `job`. Raises MissingObjectError, DamagedResultError."""
    return run_result(locate_run(job, datasets.open_dataset(job)).store)


def is_finished(store: Store) -> bool:
    """Return whether the run in `store` has its result. A damaged one is moved to `damaged/`."""
    try:
        run_result(store)
    except MissingObjectError:
        return False
    except DamagedResultError as error:
        data = store.read(RESULT)
        aside = f"damaged/result-{hashlib.sha256(data).hexdigest()[:12]}.json"
        store.write(aside, data)
        store.delete(RESULT)
        log.warning(
            "%s It is set aside as %s/%s and computed again from the checkpoints.", error, store.uri, aside
        )
        return False
    return True
