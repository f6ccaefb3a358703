"""Read the result of a finished run. A damaged one is set aside, and computed again from the checkpoints."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

from orchestrator.errors import DamagedResultError
from orchestrator.evaluation.scores import from_records
from orchestrator.run_files import RESULT, read_result
from shards.errors import CorruptObjectError, MissingObjectError
from shards.store import Store
from shards.store.checked import digest_in

log = logging.getLogger(__name__)

_REQUIRED = ("step", "weights", "averaged", "scores")


def run_result(store: Store) -> dict[str, Any]:
    """Return everything that publishing a run needs. Raises MissingObjectError, DamagedResultError."""
    result = read_result(store, _REQUIRED)
    try:
        digest_in(result["weights"])
        if not from_records(result["scores"]):
            raise ValueError("no scores")
    except (CorruptObjectError, ValueError, KeyError, TypeError) as error:
        raise DamagedResultError(f"{store.uri}/{RESULT} is not the result of a run ({error}).") from error
    return result


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
