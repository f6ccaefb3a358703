"""Say what MLflow's failures mean and what to do about each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.errors import TrackingError
from orchestrator.masking import without_password

_UNREACHABLE = (
    "Start that server, or unset MLFLOW_TRACKING_URI and track.uri to track into a local file.",
    "no answer.",
)
_STATUS = re.compile(r"too many (\d{3}) error responses|error code (\d{3}) |^(\d{3}) Client Error")
_ARTIFACTS = re.compile(r"/mlflow-artifacts/|/get-artifact|/upload-artifact")

_KINDS: tuple[tuple[str, str, str], ...] = (
    (
        r"The run (\w+) must be in the 'active' state",
        r"run \1 was deleted there.",
        r"Restore it on its page or with `mlflow runs restore --run-id \1`, and send what waits with `mirage sync`. "
        "To track the job as another run, submit it again.",
    ),
    (
        r"The experiment (\w+) must be in the 'active' state",
        r"experiment \1 was deleted there.",
        r"Restore it with `mlflow experiments restore --experiment-id \1`, or name another one in track.experiment.",
    ),
    (
        r"Run with id=(\w+) not found",
        r"it has no run \1: its database was emptied, or another server is there now.",
        "Bring the database back and call `mirage sync`, or submit the job again: it is tracked as a new run.",
    ),
    (
        r"disk is full|No space left on device|quota exceeded|error code 507",
        "no space is left for its database or its files.",
        "Free space there.",
    ),
    (
        r"out-of-date database schema",
        "its database has the schema of another MLflow.",
        "Make a backup of the database and run `mlflow db upgrade` on it, or use the MLflow that wrote it.",
    ),
    (
        r"not a database|disk image is malformed",
        "its database is damaged.",
        "Bring it back from a backup, or move the file away to begin a new one.",
    ),
    (
        r"readonly database|unable to open database file|Read-only file system|Permission denied: '",
        "its database or its folder cannot be written.",
        "Change the permissions, or name another place in MLFLOW_TRACKING_URI.",
    ),
    (r"database is locked", "another program holds its database locked.", "End that program or try again."),
    (
        r"not in a valid JSON format",
        "what answers there is not MLflow, but perhaps a proxy or a login page.",
        "Check the address in MLFLOW_TRACKING_URI or track.uri.",
    ),
)
"""Pattern in MLflow's message → what happened, what to do."""

_STATUSES = {
    401: (
        "it refuses the credentials (HTTP 401).",
        "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.",
    ),
    403: (
        "these credentials do not permit it (HTTP 403).",
        "Ask for the permission to write to this experiment and its models.",
    ),
    404: (
        "it does not know this request (HTTP 404).",
        "Check the address; the server must be MLflow 3 or newer.",
    ),
    413: (
        "a request is too large for it (HTTP 413).",
        "Raise the limit of the proxy in front of the server.",
    ),
    429: ("it receives too many requests (HTTP 429).", "Try again later."),
}


def explain(error: Exception) -> str:
    """Return what an error of MLflow, its HTTP client or its database means, and what to do, in one line."""
    text = str(error)
    for pattern, what, remedy in _KINDS:
        if match := re.search(pattern, text):
            return f"{match.expand(what)} {match.expand(remedy)}"
    if match := _STATUS.search(text):
        status = int(match[1] or match[2] or match[3])
        if status in _STATUSES:
            return " ".join(_STATUSES[status])
        part = "its artifact store" if _ARTIFACTS.search(text) else "the server"
        return (
            f"{part} fails with HTTP {status}. The log of the server says why; a full disk is a usual cause."
        )
    line = one_line(error)
    if line == _UNREACHABLE[1]:
        if _ARTIFACTS.search(text):
            return "its artifact store breaks connections off. The log of the server says why."
        return f"{line} {_UNREACHABLE[0]}"
    return line if line.endswith((".", "...")) else f"{line}."


@contextmanager
def tracking_errors(uri: str) -> Iterator[None]:
    """Turn errors of MLflow, its HTTP client and its database into a TrackingError of one line."""
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(f"MLflow at {without_password(uri)}: {explain(error)}") from error


def one_line(error: Exception) -> str:
    """Return the first line of an MLflow error without passwords, at most 200 characters long."""
    lines = without_password(str(error)).strip().splitlines() or [type(error).__name__]
    if "failed with exception" in lines[0]:  # MLflow's wrapping of any error of its HTTP client
        return _UNREACHABLE[1]
    return lines[0] if len(lines[0]) <= 200 else lines[0][:197] + "..."


def error_code(error: BaseException) -> str:
    """Return the code of an MLflow error, "" for another one."""
    return str(getattr(error, "error_code", ""))


def is_too_large(error: BaseException) -> bool:
    """Return whether a proxy refused a request for its size."""
    match = _STATUS.search(str(error))
    return match is not None and "413" in match.groups()
