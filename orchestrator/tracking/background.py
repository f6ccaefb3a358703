"""Log metrics and images to MLflow in the background, from a journal on disk.

    Tracker.metrics, .image ─► journal on disk ─► sender thread ─► MLflow

Tracking never slows training. A call of a `Tracker` appends to a local file; it neither waits for the server nor
raises. A thread sends what the journal holds. While the server is away the journal grows and the thread retries; what a
process could not send before it ended is sent when the job is submitted again, by `Tracker` or `sync`.

Each (metric, step) is recorded once. A run that resumes from step 500 after dying at 540 repeats the steps 501 to 540.
Their metrics are equal by construction (to rounding, if the number of workers changed), and MLflow would keep both
values and draw a zigzag, so the sender skips the steps that the server has. This also lets a journal be replayed twice.
"""

from __future__ import annotations

import io
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import TrackingError
from orchestrator.tracking.client import connect, one_line, tracking_errors
from orchestrator.tracking.journal import Journal, JournalFullError, PendingImage, StepMetrics
from orchestrator.tracking.mirrors import Mirror
from orchestrator.tracking.uri import without_password

log = logging.getLogger(__name__)

BATCH_VALUES = 900
"""Metrics per request; MLflow takes at most 1000."""
POLL_SECONDS = 1.0
RETRY_SECONDS = (5.0, 60.0)
"""First and longest pause after a failed attempt."""


def log_metrics(uri: str, run_id: str, step: int, values: Mapping[str, float]) -> None:
    """Log the metrics of one step now, each once: a second call changes nothing. Raises TrackingError."""
    with tracking_errors(uri):
        _Sender(uri, run_id).send_metrics([StepMetrics(step, time.time_ns() // 1_000_000, dict(values))])


def sync(uri: str, run_id: str, spool: Path) -> int:
    """Send what earlier processes of a run left in `spool`; return the number of steps and images sent.

    Journals of running processes are left alone. Raises TrackingError.
    """
    with tracking_errors(uri):
        return _replay(uri, run_id, spool)


class Tracker:
    """Logs to one MLflow run in the background.

    `spool` must be a folder on a local disk. A metric that is not finite is logged as NaN: MLflow stores an infinity as
    1.8e308, and one such point flattens a whole chart.
    """

    def __init__(self, uri: str, run_id: str, spool: Path, mirrors: Sequence[Mirror] = ()) -> None:
        self._uri, self._run_id, self._spool, self._mirrors = uri, run_id, spool, mirrors
        self._closing = threading.Event()
        self._lost = 0
        self._complete = False
        self._action: Callable[[], None] | None = None
        self._journal: Journal | None = None
        try:
            self._journal = Journal.create(spool, run_id)
        except OSError as error:
            log.warning("nothing is tracked: cannot write %s (%s)", spool, error.strerror)
        self._thread = threading.Thread(
            target=self._send_until_closed, args=[self._journal], name="tracker", daemon=True
        )
        self._thread.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of one step. Returns at once and never raises."""
        finite = {name: value if math.isfinite(value) else math.nan for name, value in values.items()}
        with self._counting_losses():
            if self._journal:
                self._journal.add(step, finite)
        for mirror in self._mirrors:
            mirror.metrics(step, finite)

    def image(self, name: str, png: bytes, step: int) -> None:
        """Log a PNG of one step. Returns at once and never raises."""
        with self._counting_losses():
            if self._journal:
                self._journal.add_image(name, png, step)
        for mirror in self._mirrors:
            mirror.image(name, png, step)

    def run_soon(self, action: Callable[[], None]) -> None:
        """Call `action` in the background after what was logged before; if several wait, only the newest is called.

        If it raises TrackingError, that is logged and metrics are sent as before.
        """
        self._action = action

    def close(self, timeout: float = 30.0) -> bool:
        """Send what is left, for at most `timeout` seconds; return whether everything has arrived.

        What has not arrived stays on disk and is sent when the job is submitted again.
        """
        for mirror in self._mirrors:
            mirror.close()
        self._journal = None
        self._closing.set()
        self._thread.join(timeout)
        if not self._complete:
            log.warning(
                "MLflow at %s has not received everything; the rest is in %s",
                without_password(self._uri),
                self._spool,
            )
        return self._complete

    def _run_action(self) -> None:
        action, self._action = self._action, None
        if action is not None:
            try:
                action()
            except TrackingError as error:
                log.warning("%s", error)

    @contextmanager
    def _counting_losses(self) -> Iterator[None]:
        try:
            yield
        except (OSError, JournalFullError) as error:
            self._lost += 1
            if self._lost == 1:
                log.warning("metrics and images are lost from here on: %s", error)

    def _send_until_closed(self, journal: Journal | None) -> None:
        """Send what waits, once a second; after a failure, pause and try again."""
        if journal is None:
            return
        pause, first_error, sender = RETRY_SECONDS[0], True, None
        while True:
            last = self._closing.is_set()
            try:
                if sender is None:
                    _replay(self._uri, self._run_id, self._spool)
                    sender = _Sender(self._uri, self._run_id)
                sender.send(journal)
                self._run_action()
            except Exception as error:
                if first_error:
                    log.warning(
                        "MLflow at %s does not answer; training continues: %s",
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
    """Sends journals to one run, except what the server had when the sender first met a metric."""

    def __init__(self, uri: str, run_id: str) -> None:
        self._client = connect(uri)
        self._run_id = run_id
        self._steps_sent: dict[str, frozenset[int]] = {}
        self._images_sent: frozenset[tuple[str, int]] | None = None

    def send(self, journal: Journal) -> int:
        """Send everything that waits; return the number of steps and images sent.

        Metrics go first, because the server may refuse images, whose store is another service.
        """
        count = 0
        while True:
            steps, mark = journal.pending(BATCH_VALUES)
            if not steps:
                break
            self.send_metrics(steps)
            journal.sent(mark)
            count += len(steps)
        for image in journal.images():
            self._send_image(image)
            image.file.unlink()
            count += 1
        return count

    def send_metrics(self, steps: list[StepMetrics]) -> None:
        """Send the metrics that the server does not have."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, step.time, step.step)
            for step in steps
            for name, value in step.values.items()
            if step.step not in self._known_steps(name)
        ]
        if metrics:
            self._client.log_batch(self._run_id, metrics=metrics)

    def _known_steps(self, name: str) -> frozenset[int]:
        if name not in self._steps_sent:
            history = self._client.get_metric_history(self._run_id, name)
            self._steps_sent[name] = frozenset(metric.step for metric in history)
        return self._steps_sent[name]

    def _send_image(self, image: PendingImage) -> None:
        from PIL import Image

        if self._images_sent is None:
            listed = self._client.list_artifacts(self._run_id, "images")
            # MLflow names them images/<name, / as ~>+step+<step>+timestamp+...
            parts = [Path(file.path).name.split("+") for file in listed]
            self._images_sent = frozenset((part[0], int(part[2])) for part in parts if part[1:2] == ["step"])
        if (image.name.replace("/", "~"), image.step) not in self._images_sent:
            with Image.open(io.BytesIO(image.file.read_bytes())) as picture:
                self._client.log_image(
                    self._run_id,
                    picture,
                    key=image.name,
                    step=image.step,
                    timestamp=image.time,
                    synchronous=True,
                )


def _replay(uri: str, run_id: str, spool: Path) -> int:
    count = 0
    for journal in Journal.abandoned(spool, run_id):
        try:
            count += _Sender(uri, run_id).send(journal)
        except BaseException:
            journal.close()
            raise
        journal.discard()
    return count
