"""Send metrics to MLflow in the background, from a journal on disk."""

from __future__ import annotations

import io
import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from orchestrator.tracking.client import connect, one_line, tracking_errors
from orchestrator.tracking.journal import Journal, JournalFullError, StepMetrics
from orchestrator.tracking.uri import without_password

log = logging.getLogger(__name__)

BATCH_VALUES = 900
"""Numbers per request; MLflow takes at most 1000."""


POLL_SECONDS = 1.0


RETRY_SECONDS = (5.0, 60.0)
"""First and longest pause after a failed attempt."""


def log_metrics(uri: str, run_id: str, step: int, values: Mapping[str, float]) -> None:
    """Record numbers of one step now, each once: a second call changes nothing. Raises TrackingError."""
    with tracking_errors(uri):
        _Sender(uri, run_id).send_records([StepMetrics(step, time.time_ns() // 1_000_000, dict(values))])


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
                "MLflow at %s has not taken everything; the rest waits in %s",
                without_password(self._uri),
                self._spool,
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
                        "MLflow at %s is away, training goes on: %s",
                        without_password(self._uri),
                        one_line(error),
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

    def send_records(self, records: list[StepMetrics]) -> None:
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
    with tracking_errors(uri):
        for run in sorted(folder for folder in spool.glob("*") if folder.is_dir()):
            for journal in Journal.left_behind(spool, run.name):
                count += _replay(uri, run.name, journal)
    return count
