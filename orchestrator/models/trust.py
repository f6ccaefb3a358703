"""Consent to run the code that a model brings.

Code that a training job of this project ran is trusted here: whoever submitted the job had its source imported from the
job's own `model.class`. Its digest is a file below the home folder. Other code runs only if its digest is given.
"""

from __future__ import annotations

from collections.abc import Collection

from orchestrator.models.network_code import NetworkCode
from orchestrator.outputs import write_output
from orchestrator.paths import home


def remember(code: NetworkCode) -> None:
    """Trust code in this project, because a training job of this project runs it."""
    path = home() / "trusted-code" / code.digest
    if not path.exists():
        write_output(path, f"{code.class_}\n".encode())


def trusted(given: Collection[str] = ()) -> frozenset[str]:
    """Return the digests that are trusted: those `given`, and those of the training jobs of this project."""
    folder = home() / "trusted-code"
    return frozenset(given) | {path.name for path in (folder.iterdir() if folder.is_dir() else ())}
