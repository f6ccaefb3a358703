"""Consent to run the code that a model brings.

Code that a training job ran is trusted by the account that ran the job: whoever submitted it had its source imported
from the job's own `model.class`. Its digest is a file in the account's own folder and not in the project's, which may
have come with the weights. Other code runs only if its digest is given.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from orchestrator.models.network_code import NetworkCode
from orchestrator.outputs import write_output
from shards.filesystem import expand_user


def remember(code: NetworkCode) -> None:
    """Trust code in this account, because a training job of this account ran it."""
    path = _folder() / code.digest
    if not path.exists():
        write_output(path, f"{code.class_}\n".encode())


def trusted(given: Collection[str] = ()) -> frozenset[str]:
    """Return the digests that are trusted: those `given`, and those of this account's training jobs."""
    folder = _folder()
    return frozenset(given) | {path.name for path in (folder.iterdir() if folder.is_dir() else ())}


def _folder() -> Path:
    return expand_user(os.environ.get("XDG_STATE_HOME") or "~/.local/state") / "mirage" / "trusted-code"
