"""Runs in MLflow: the driver opens and ends them, rank 0 reports from the background.

    driver    start_run ──────────────────────────────── log_artifacts ── end_run
    rank 0        Tracker.metrics, .image ─► journal on disk ─► sender thread ─► MLflow

Tracking never hurts training. A call of a `Tracker` appends to a local file and returns; it does not wait for
the server and does not raise. A thread sends what the journal holds. While the server is away the journal
grows and the thread tries again; what a process could not send before it ended is sent by the next process of
the same run, or by `sync`.

A (metric, step) is recorded once. A run that resumes from step 500 after dying at 540 walks through 501 to
540 again. Those numbers are equal by construction (to rounding, where the number of workers changed), MLflow
does not replace a value, and two values at one step would draw a zigzag: so the first recording stands, and
the sender leaves out the steps that the server holds. For the same reason a journal may be replayed twice.

Each store is given by its URI; nothing here reads or sets MLflow's global state.
"""

from __future__ import annotations

import fcntl
import io
import logging
import math
import os
import re
import shlex
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from orchestrator.errors import TrackingError
from orchestrator.home import home
from orchestrator.journal import Journal, JournalFullError, Record

log = logging.getLogger(__name__)

BATCH_VALUES = 900
"""Numbers per request; MLflow takes at most 1000."""

POLL_SECONDS = 1.0
RETRY_SECONDS = (5.0, 60.0)
"""First and longest pause after a failed attempt."""

_DEFAULTS = {
    # MLflow's own default is 7 retries, about four minutes per call.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Otherwise saving a model runs `pip install --dry-run`.
    "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Otherwise importing GitPython warns on machines without git.
    "GIT_PYTHON_REFRESH": "quiet",
}

_NOISY = {
    "alembic": logging.WARNING,  # the schema's migrations, one line each
    "mlflow.store.db.utils": logging.WARNING,
    "mlflow.pyfunc": logging.WARNING,  # that it tries the example
    "urllib3.connectionpool": logging.ERROR,  # each retry; the outage itself is ours to report
}


# ---------------------------------------------------------------------------------------------- where


def tracking_uri(configured: str | None = None) -> str:
    """Return the absolute URI of the store: `configured`, else MLFLOW_TRACKING_URI, else SQLite at home.

    A relative SQLite path stands below the project, because Ray runs a job in a folder of its own.
    """
    uri = configured or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"
    database = sqlite_file(uri)
    return f"sqlite:///{home().parent / database}" if database else uri


def sqlite_file(uri: str) -> Path | None:
    """Return the database file of a SQLite URI, None for any other store."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def shown(uri: str) -> str:
    """Return `uri` fit for a message: without the password that it may carry.

    A password may hold "/" and "@" unescaped, so what looks like one is hidden up to the last "@".
    """
    return re.sub(r"//[^\s/:]*(?::\S*)?@", "//***@", uri)


def page_command(uri: str) -> str:
    """Return the command that opens the tracking page of `uri`: for a server, its address is all it takes."""
    database = sqlite_file(uri)
    if database is None:
        return shown(uri)
    program = Path(sys.executable).with_name("mlflow")
    on_path = shutil.which("mlflow")
    words = [
        "mlflow" if on_path and Path(on_path) == program else _short(program),
        "server",
        "--backend-store-uri",
        f"sqlite:///{_short(database)}",
        "--artifacts-destination",
        _short(artifact_folder(database)),
        "--host",
        "127.0.0.1",
        "--port",
        str(_free_port(5000)),
        "--workers",
        "1",
    ]
    return shlex.join(words)


def artifact_folder(database: Path) -> Path:
    """Return where the artifacts of a SQLite store lie."""
    return database.parent / "mlartifacts"


def _short(path: Path) -> str:
    working = Path.cwd()
    return str(path.relative_to(working)) if path.is_relative_to(working) else str(path)


def _free_port(first: int) -> int:
    for port in range(first, first + 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise TrackingError(f"no free port on 127.0.0.1 between {first} and {first + 99} for the MLflow page")


# --------------------------------------------------------------------------------------------- driver


def start_run(
    uri: str,
    experiment: str,
    name: str,
    tags: Mapping[str, str],
    params: Mapping[str, object],
    resume_id: str | None = None,
) -> str:
    """Open a run and return its id; with `resume_id`, reopen that run.

    Parameters are written once, at creation: MLflow refuses to change one. Creates the SQLite schema and the
    experiment where they do not exist; no other function does. Raises TrackingError.
    """
    with _errors(uri), _sole_creator(uri):
        client = connect(uri)
        if resume_id is not None:
            client.update_run(resume_id, status="RUNNING")
            for key, value in tags.items():
                client.set_tag(resume_id, key, value)
            return resume_id
        run_id = client.create_run(
            _experiment(client, uri, experiment), run_name=name, tags=dict(tags)
        ).info.run_id
        items = list(params.items())
        for start in range(0, len(items), 100):  # MLflow takes 100 at a time
            client.log_batch(run_id, params=[_param(key, value) for key, value in items[start : start + 100]])
    return str(run_id)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Return nested values as parameters of a run: one level, names joined by dots."""
    found: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def end_run(uri: str, run_id: str, status: str) -> None:
    """End a run as FINISHED, FAILED or KILLED. Raises TrackingError."""
    with _errors(uri):
        connect(uri).set_terminated(run_id, status=status)


def is_finished(uri: str, run_id: str) -> bool:
    """Return whether a run ended well. Raises TrackingError."""
    with _errors(uri):
        return bool(connect(uri).get_run(run_id).info.status == "FINISHED")


def run_tags(uri: str, run_id: str) -> dict[str, str] | None:
    """Return the tags of a run, None when there is no such run. Raises TrackingError."""
    with _errors(uri):
        from mlflow.exceptions import MlflowException

        try:
            return dict(connect(uri).get_run(run_id).data.tags)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None


def log_metrics(uri: str, run_id: str, step: int, values: Mapping[str, float]) -> None:
    """Record numbers of one step now, each once: a second call changes nothing. Raises TrackingError."""
    with _errors(uri):
        _Sender(uri, run_id).send_records([Record(step, time.time_ns() // 1_000_000, dict(values))])


def log_artifacts(uri: str, run_id: str, files: Mapping[str, bytes | Path]) -> None:
    """Store files with a run: artifact path to contents or local file. Raises TrackingError."""
    with tempfile.TemporaryDirectory(prefix="mirage-artifacts-") as folder:
        for place, source in files.items():
            target = Path(folder, place)
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(source, bytes):
                target.write_bytes(source)
            else:
                shutil.copyfile(source, target)
        with _errors(uri):
            connect(uri).log_artifacts(run_id, folder)


def find_run(uri: str, experiment: str, key: str, value: str) -> str | None:
    """Return the newest run of `experiment` whose tag `key` is `value`, or None. Raises TrackingError."""
    with _errors(uri), _sole_creator(uri):
        client = connect(uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return None
        runs = client.search_runs(
            [found.experiment_id],
            f"tags.`{key}` = '{value}'",
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )
    return str(runs[0].info.run_id) if runs else None


def find_params(uri: str, key: str, value: str) -> tuple[str, dict[str, str]] | None:
    """Return tag `key` and the parameters of the newest run, of any experiment, that is called `value`.

    It is called so if its tag `key` or its MLflow id is `value`; None if no run is. Raises TrackingError.
    """
    with _errors(uri):
        client = connect(uri)
        experiments = [found.experiment_id for found in client.search_experiments()]
        for query in (f"tags.`{key}` = '{value}'", f"attributes.run_id = '{value}'"):
            newest = ["attributes.start_time DESC"]
            for run in client.search_runs(experiments, query, order_by=newest, max_results=1):
                if key in run.data.tags:
                    return str(run.data.tags[key]), dict(run.data.params)
    return None


def find_id(uri: str, key: str, value: str) -> str | None:
    """Return the MLflow id of the newest run whose tag `key`, or whose own id, is `value`. Raises TrackingError."""
    with _errors(uri), _sole_creator(uri):
        client = connect(uri)
        experiments = [found.experiment_id for found in client.search_experiments()]
        for query in (f"tags.`{key}` = '{value}'", f"attributes.run_id = '{value}'"):
            newest = ["attributes.start_time DESC"]
            for run in client.search_runs(experiments, query, order_by=newest, max_results=1):
                return str(run.info.run_id)
    return None


def connect(uri: str) -> Any:
    """Return an MLflow client for `uri`, with short retries. Importing MLflow takes seconds, so only here."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for noisy, level in _NOISY.items():
        logging.getLogger(noisy).setLevel(level)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def one_line(error: Exception) -> str:
    """Return the first line of an MLflow error, short enough for a terminal."""
    text = shown((str(error) or type(error).__name__).splitlines()[0])
    if "failed with exception" in text:  # MLflow's words around whatever its HTTP client raised
        return "no answer."
    return text if len(text) <= 200 else text[:197] + "..."


def _experiment(client: Any, uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    database = sqlite_file(uri)
    place = artifact_folder(database).as_uri() if database else None
    return str(client.create_experiment(name, artifact_location=place))


def _param(key: str, value: object) -> Any:
    from mlflow.entities import Param

    return Param(key, str(value))


@contextmanager
def _errors(uri: str) -> Iterator[None]:
    """Turn what MLflow, its HTTP client and its database raise into one line."""
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(
            f"MLflow at {shown(uri)}: {one_line(error)} "
            "Start that server, or unset MLFLOW_TRACKING_URI and track.uri to track into a local file."
        ) from error


@contextmanager
def _sole_creator(uri: str) -> Iterator[None]:
    """Let one process at a time create schema and experiment: MLflow's migrations race."""
    database = sqlite_file(uri)
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# --------------------------------------------------------------------------------------------- rank 0


class Tracker:
    """Reports to one MLflow run from the background; see the module for what it promises.

    `spool` must be a folder on a local disk. A number that is not finite is recorded as NaN: MLflow would
    store an infinity as 1.8e308, and one such point flattens a whole chart.
    """

    def __init__(self, uri: str, run_id: str, spool: Path) -> None:
        self._uri, self._run_id, self._spool = uri, run_id, spool
        self._closing = threading.Event()
        self._lost = 0
        self._journal: Journal | None = None
        try:
            self._journal = Journal.create(spool, run_id)
        except OSError as error:
            log.warning("nothing is tracked: cannot write %s (%s)", spool, error.strerror)
        self._complete = False
        self._thread = threading.Thread(
            target=self._send_until_closed, args=[self._journal], name="tracker", daemon=True
        )
        self._thread.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record the numbers of one step. Returns at once and never raises."""
        finite = {name: value if math.isfinite(value) else math.nan for name, value in values.items()}
        with self._keeping():
            if self._journal:
                self._journal.add(step, finite)

    def image(self, name: str, png: bytes, step: int) -> None:
        """Record a PNG of one step. Returns at once and never raises."""
        with self._keeping():
            if self._journal:
                self._journal.add_picture(name, png, step)

    def close(self, timeout: float = 30.0) -> bool:
        """Send what is left, for at most `timeout` seconds; True when all has arrived.

        What has not arrived stays on disk for the next process of this run, or for `sync`.
        """
        self._journal = None
        self._closing.set()
        self._thread.join(timeout)
        if not self._complete:
            log.warning(
                "MLflow at %s has not taken everything; the rest waits in %s", shown(self._uri), self._spool
            )
        return self._complete

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        try:
            yield
        except (OSError, JournalFullError) as error:
            self._lost += 1
            if self._lost == 1:
                log.warning("tracking loses records from here on: %s", error)

    def _send_until_closed(self, journal: Journal | None) -> None:
        """Body of the thread: each round sends what waits; a round that fails is repeated after a pause."""
        if journal is None:
            return
        pause, first_error, sender = RETRY_SECONDS[0], True, None
        while True:
            last = self._closing.is_set()
            try:
                if sender is None:
                    for old in Journal.left_behind(self._spool, self._run_id):
                        _replay(self._uri, self._run_id, old)
                    sender = _Sender(self._uri, self._run_id)
                sender.send(journal)
            except Exception as error:
                if first_error:
                    log.warning(
                        "MLflow at %s is away, training goes on: %s", shown(self._uri), one_line(error)
                    )
                first_error = False
                if last:
                    journal.close()
                    return
                self._closing.wait(pause)
                pause = min(2 * pause, RETRY_SECONDS[1])
            else:
                pause, first_error = RETRY_SECONDS[0], True
                if last:
                    journal.discard()
                    self._complete = self._lost == 0
                    return
                self._closing.wait(POLL_SECONDS)


class _Sender:
    """Sends journals to one run, leaving out what the server held when the sender first met a metric."""

    def __init__(self, uri: str, run_id: str) -> None:
        self._client = connect(uri)
        self._run_id = run_id
        self._held: dict[str, frozenset[int]] = {}
        self._held_pictures: frozenset[tuple[str, int]] | None = None

    def send(self, journal: Journal) -> int:
        """Send all that waits; return the number of records and pictures sent.

        Numbers go first: a server that takes them may refuse pictures, whose store is another service.
        """
        count = 0
        while True:
            records, mark = journal.pending(BATCH_VALUES)
            if not records:
                break
            self.send_records(records)
            journal.sent(mark)
            count += len(records)
        for picture in journal.pictures():
            self._send_picture(picture.name, picture.step, picture.time, picture.file.read_bytes())
            picture.file.unlink()
            count += 1
        return count

    def send_records(self, records: list[Record]) -> None:
        """Send the numbers that the server does not hold."""
        from mlflow.entities import Metric

        rows = [
            Metric(name, value, record.time, record.step)
            for record in records
            for name, value in record.values.items()
            if record.step not in self._steps_held(name)
        ]
        if rows:
            self._client.log_batch(self._run_id, metrics=rows)

    def _steps_held(self, name: str) -> frozenset[int]:
        if name not in self._held:
            history = self._client.get_metric_history(self._run_id, name)
            self._held[name] = frozenset(metric.step for metric in history)
        return self._held[name]

    def _send_picture(self, name: str, step: int, time: int, png: bytes) -> None:
        from PIL import Image

        if self._held_pictures is None:
            listed = self._client.list_artifacts(self._run_id, "images")
            # MLflow's own names: images/<name, / as ~>+step+<step>+timestamp+...
            parts = [Path(file.path).name.split("+") for file in listed]
            self._held_pictures = frozenset(
                (part[0], int(part[2])) for part in parts if part[1:2] == ["step"]
            )
        if (name.replace("/", "~"), step) not in self._held_pictures:
            with Image.open(io.BytesIO(png)) as image:
                self._client.log_image(
                    self._run_id, image, key=name, step=step, timestamp=time, synchronous=True
                )


def _replay(uri: str, run_id: str, journal: Journal) -> int:
    try:
        count = _Sender(uri, run_id).send(journal)
    except BaseException:
        journal.close()
        raise
    journal.discard()
    return count


def sync(spool: Path, uri: str) -> int:
    """Send what earlier processes left in `spool`; return how many records and pictures that were.

    Journals of living processes are left alone. Raises TrackingError.
    """
    count = 0
    with _errors(uri):
        for run in sorted(folder for folder in spool.glob("*") if folder.is_dir()):
            for journal in Journal.left_behind(spool, run.name):
                count += _replay(uri, run.name, journal)
    return count
