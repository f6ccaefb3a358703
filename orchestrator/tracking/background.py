"""Send what a run reports to MLflow in the background, from a journal on disk.

    Tracker.metrics, .image, .artifact, … ─► journal on disk ─► sender thread ─► MLflow

Tracking never slows training. A call of a `Tracker` appends to a local file; it neither waits for the server nor
raises. A thread sends what the journal holds. While the server is away the journal grows and the thread retries; what a
process could not send before it ended is sent by the next process that tracks to this server, or by `mirage sync`.

Each (metric, step) is recorded once. A run that resumes from step 500 after dying at 540 repeats the steps 501 to 540.
Their metrics are equal by construction (to rounding, if the number of workers changed), and MLflow would keep both
values and draw a zigzag, so the sender skips the steps that the server has. A process sends a metric by ascending step,
so it asks the server once for the newest step of each metric. Only a journal that another process left behind may fill
gaps before that step; of the metrics for which it could, the whole history is read.
"""

from __future__ import annotations

import gc
import io
import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.errors import TrackingError
from orchestrator.masking import unmasked, without_password
from orchestrator.records import check_record
from orchestrator.run_files import RUN_TAG
from orchestrator.tracking.checkpoints import TrackedCheckpoint, sync_checkpoints
from orchestrator.tracking.client import connect
from orchestrator.tracking.failures import error_code, explain, is_too_large, tracking_errors
from orchestrator.tracking.finished_runs import SyncedRun, send_kept
from orchestrator.tracking.inputs import InputDataset
from orchestrator.tracking.journal import Journal, JournalFullError, PendingImage, StepMetrics, waiting_runs
from orchestrator.tracking.mirrors import Mirror
from orchestrator.tracking.runs import STARTED_TAG
from orchestrator.tracking.uri import sqlite_file

log = logging.getLogger(__name__)

BATCH_VALUES = 900
"""Metrics per request; MLflow takes at most 1000."""
POLL_SECONDS = 1.0
RETRY_SECONDS = (5.0, 60.0)
"""First and longest pause after a failed attempt."""
_REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
"""Codes of MLflow's errors about a content that it will never take."""


def log_metrics(uri: str, run_id: str, step: int, values: Mapping[str, float]) -> None:
    """Log the metrics of one step now, each once: a second call changes nothing. Raises TrackingError."""
    with tracking_errors(uri):
        _Sender(uri, run_id).send_metrics([StepMetrics(step, time.time_ns() // 1_000_000, dict(values))])


def sync(uri: str, run_id: str, spool: Path) -> int:
    """Send what ended processes of a run left in `spool`; return the number of steps, images and files sent.

    Journals of running processes are left alone. Raises TrackingError.
    """
    with tracking_errors(uri):
        return _send_abandoned(uri, run_id, run_id, spool)


def sync_all(uri: str, spool: Path) -> Iterator[SyncedRun]:
    """Send what ended processes left in `spool`, for every run; yield what was done for each.

    A journal goes to the server that its run was tracked to: `uri`, or the address in the journal.
    """
    for run_id in waiting_runs(spool):
        about = _about(spool, run_id)
        if about is None:
            continue  # its process is alive
        target = unmasked(about["server"], uri) if "server" in about else uri
        name = about.get("run") or run_id
        try:
            with tracking_errors(target):
                found = _successor(target, run_id, name)
                yield SyncedRun(name, _send_abandoned(target, run_id, found or run_id, spool))
        except TrackingError as error:
            yield SyncedRun(name, 0, f"{error} What waits is in {spool / run_id}; delete it to give it up.")
    yield from send_kept(uri, spool, of_all_servers=True)


class Tracker:
    """Reports one run to MLflow in the background.

    `spool` must be a folder on a local disk. `name`: what the run is called besides its id in MLflow. What an earlier
    run of the same name reported that MLflow no longer has is sent to this run. A metric that is not finite is logged
    as NaN: MLflow stores an infinity as 1.8e308, and one such point flattens a whole chart.
    """

    def __init__(
        self, uri: str, run_id: str, spool: Path, mirrors: Sequence[Mirror] = (), name: str = ""
    ) -> None:
        self.run_id = run_id
        self._uri, self._spool, self._mirrors, self._name = uri, spool, mirrors, name
        self._closing = threading.Event()
        self._lost = 0
        self._complete = False
        self._problem = ""
        self._journal: Journal | None = None
        try:
            self._journal = Journal.create(spool, run_id, {"server": without_password(uri), "run": name})
        except OSError as error:
            log.warning("nothing is tracked: cannot write %s (%s)", spool, error.strerror)
        self._thread = threading.Thread(
            target=self._send_until_closed, args=[self._journal], name="tracker", daemon=True
        )
        self._thread.start()

    # All of these return at once and never raise.

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of one step."""
        finite = {name: value if math.isfinite(value) else math.nan for name, value in values.items()}
        with self._counting_losses():
            if self._journal:
                self._journal.add(step, finite)
        for mirror in self._mirrors:
            mirror.metrics(step, finite)

    def image(self, name: str, png: bytes, step: int) -> None:
        """Log a PNG of one step."""
        with self._counting_losses():
            if self._journal:
                self._journal.add_image(name, png, step)
        for mirror in self._mirrors:
            mirror.image(name, png, step)

    def artifact(self, path: str, content: bytes) -> None:
        """Log a file of the run; it replaces an earlier one of the same path."""
        with self._counting_losses():
            if self._journal:
                self._journal.add_artifact(path, content)

    def checkpoints(
        self,
        kept: Sequence[TrackedCheckpoint],
        params: Mapping[str, object],
        validated_on: InputDataset | None,
    ) -> None:
        """Make the LoggedModels of the run those of `kept`, as `sync_checkpoints` does."""
        dataset = asdict(validated_on) if validated_on else None
        with self._counting_losses():
            if self._journal:
                self._journal.add_checkpoints(
                    {
                        "checkpoints": [asdict(one) for one in kept],
                        "params": dict(params),
                        "validated_on": dataset,
                    }
                )

    def end(self, status: str) -> None:
        """Let the run end as FINISHED, FAILED or KILLED; it is FINISHED when everything else has arrived."""
        with self._counting_losses():
            if self._journal:
                self._journal.end(status)

    def close(self, timeout: float = 30.0) -> bool:
        """Send what is left, for at most `timeout` seconds; return whether everything has arrived.

        A second call changes nothing.
        """
        if self._closing.is_set():
            return self._complete
        for mirror in self._mirrors:
            mirror.close()
        journal, self._journal = self._journal, None
        self._closing.set()
        self._thread.join(timeout)
        if self._lost:
            log.warning(
                "%d reports of this run were lost, because they could not be written to disk", self._lost
            )
        if not self._complete and journal is not None:
            with suppress(OSError):
                log.warning(
                    "MLflow at %s has not received everything; the rest is in %s: %s.%s Send it with `mirage sync`, or "
                    "submit the job again.",
                    without_password(self._uri),
                    journal.path.parent,
                    journal.waiting() or "nothing but its end",
                    f" {self._problem}" if self._problem else "",
                )
        return self._complete

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
        pause, sender, others_sent = RETRY_SECONDS[0], None, False
        while True:
            last = self._closing.is_set()
            try:
                if sender is None:
                    self._send_earlier()
                    sender = _Sender(self._uri, self.run_id)
                sender.send(journal)
            except Exception as error:
                self._report(error)
                if last:
                    journal.close()
                    return
                self._closing.wait(pause)
                pause = min(2 * pause, RETRY_SECONDS[1])
            else:
                pause, self._problem = RETRY_SECONDS[0], ""
                if last:
                    journal.discard()
                    self._complete = self._lost == 0
                    return
                if not others_sent:
                    others_sent = True
                    self._send_others()
                self._closing.wait(POLL_SECONDS)

    def _report(self, error: Exception) -> None:
        problem = explain(error)
        if problem != self._problem:
            log.warning(
                "MLflow at %s: %s Training continues, and what it reports is kept in %s.",
                without_password(self._uri),
                problem,
                self._spool,
            )
        self._problem = problem

    def _send_earlier(self) -> None:
        """Send what earlier processes of this run left, also under the id of a run that is gone."""
        _send_abandoned(self._uri, self.run_id, self.run_id, self._spool, owned=True)
        for run_id in waiting_runs(self._spool):
            about = _about(self._spool, run_id) if run_id != self.run_id and self._name else None
            if (
                about
                and about.get("run") == self._name
                and about.get("server") == without_password(self._uri)
                and not _is_active(connect(self._uri), run_id)
            ):
                _send_abandoned(self._uri, run_id, self.run_id, self._spool, owned=True)

    def _send_others(self) -> None:
        """Send what ended processes of other runs left for this server."""
        for run_id in waiting_runs(self._spool):
            if self._closing.is_set():
                return
            about = _about(self._spool, run_id)
            if run_id != self.run_id and about and about.get("server") == without_password(self._uri):
                try:
                    target = _successor(self._uri, run_id, about.get("run", ""))
                    _send_abandoned(self._uri, run_id, target or run_id, self._spool)
                except Exception as error:
                    log.warning(
                        "what run %s left is still waiting: %s", about.get("run") or run_id, explain(error)
                    )
        try:
            for sent in send_kept(self._uri, self._spool):
                if sent.problem:
                    log.warning("%s is still waiting: %s", sent.name, sent.problem)
        except Exception as error:
            log.warning("evaluations are still waiting: %s", explain(error))


class _Sender:
    """Sends journals to one run, except the steps that the server has."""

    def __init__(self, uri: str, run_id: str) -> None:
        self._client = connect(uri)
        self._is_local = sqlite_file(uri) is not None  # MLflow's store runs in this process
        self._run_id = run_id
        self._newest_step, self._started = self._read_run()
        self._images_sent: frozenset[tuple[str, int]] | None = None
        self._steps_sent: dict[str, set[int]] = {}

    def _read_run(self) -> tuple[dict[str, int], int]:
        """Return the newest step of each metric, and when a process last started the run."""
        run = self._client.get_run(self._run_id)
        if run.info.run_id != self._run_id:  # an empty answer counts as a run without an id
            raise TrackingError(
                "what answers there is not MLflow. Check the address in MLFLOW_TRACKING_URI or track.uri."
            )
        started = run.data.tags.get(STARTED_TAG, "")
        return {metric.key: metric.step for metric in run.data.to_proto().metrics}, (
            int(started) if started.isdecimal() else 0
        )

    def send(self, journal: Journal, *, abandoned: bool = False, owned: bool = True) -> int:
        """Send everything that waits; return the number of steps, images and files sent.

        Metrics go first, because the server may refuse images and files, whose store is another service. `abandoned`:
        the journal of another process. `owned` False: the run may continue elsewhere, so that the list of checkpoints
        and the end of an earlier process say nothing.
        """
        count = 0
        while True:
            steps, mark = journal.pending(BATCH_VALUES)
            self._send_steps(steps, journal, fill_gaps=abandoned)
            journal.sent(mark)
            if not steps:
                break
            count += len(steps)
        end = journal.status()
        if end and abandoned and (owned or end[0]["time"] < self._started):
            journal.remove(end[1])
            end = None
        if end and end[0]["status"] != "FINISHED":
            self._end(journal, *end)
            end = None
        too_large: Exception | None = None
        actions = [partial(self._send_image, journal, image) for image in journal.images()]
        actions += [partial(self._send_artifact, journal, file) for file in journal.artifacts()]
        for action in actions:
            try:
                action()
                count += 1
            except Exception as error:
                if not is_too_large(error):
                    raise
                too_large = error
        if found := journal.checkpoints():
            content, files = found
            if not owned and _milliseconds(files[-1]) < self._started:
                for file in files:
                    journal.remove(file)
            else:
                self._send_checkpoints(journal, content, files)
        if too_large:
            raise too_large
        if end:
            self._end(journal, *end)
        return count

    def send_metrics(self, steps: Sequence[StepMetrics], *, fill_gaps: bool = False) -> None:
        """Send the metrics that the server does not have."""
        self._send_steps(steps, None, fill_gaps=fill_gaps)

    def _send_steps(self, steps: Sequence[StepMetrics], journal: Journal | None, *, fill_gaps: bool) -> None:
        newest: dict[str, int] = {}
        new: list[tuple[StepMetrics, str]] = []
        chosen: set[tuple[str, int]] = set()
        for step in steps:
            for name in step.values:
                before = newest.get(name, self._newest_step.get(name, step.step - 1))
                if step.step > before or (
                    fill_gaps and (name, step.step) not in chosen and step.step not in self._known_steps(name)
                ):
                    new.append((step, name))
                    chosen.add((name, step.step))
                    newest[name] = max(step.step, before)
        self._log_batch(new, journal)
        self._newest_step |= newest
        for name, number in chosen:
            if name in self._steps_sent:
                self._steps_sent[name].add(number)

    def _known_steps(self, name: str) -> set[int]:
        if name not in self._steps_sent:
            history = self._client.get_metric_history(self._run_id, name)
            self._steps_sent[name] = {metric.step for metric in history}
        return self._steps_sent[name]

    def _log_batch(self, new: Sequence[tuple[StepMetrics, str]], journal: Journal | None) -> None:
        """Log metrics in one request; if the server refuses one of them, find it and set it aside."""
        from mlflow.entities import Metric

        metrics = [Metric(name, step.values[name], step.time, step.step) for step, name in new]
        if not metrics:
            return
        try:
            with _without_cycle_search() if self._is_local else nullcontext():
                self._client.log_batch(self._run_id, metrics=metrics)
        except Exception as error:
            refused = error_code(error) in _REFUSED and "'active' state" not in str(error)
            if journal is None or not (refused or (is_too_large(error) and len(new) > 1)):
                raise
            if len(new) == 1:
                step, name = new[0]
                journal.set_aside(
                    step._replace(values={name: step.values[name]}),
                    f"MLflow refuses a metric ({explain(error)})",
                )
                return
            middle = len(new) // 2
            self._log_batch(new[:middle], journal)
            self._log_batch(new[middle:], journal)

    def _send_image(self, journal: Journal, image: PendingImage) -> None:
        from PIL import Image

        if self._images_sent is None:
            listed = self._client.list_artifacts(self._run_id, "images")
            # MLflow names them images/<name, / as ~>+step+<step>+timestamp+...
            parts = [Path(file.path).name.split("+") for file in listed]
            self._images_sent = frozenset((part[0], int(part[2])) for part in parts if part[1:2] == ["step"])
        if (image.name.replace("/", "~"), image.step) in self._images_sent:
            journal.remove(image.file)
            return
        try:
            with Image.open(io.BytesIO(image.file.read_bytes()), formats=["PNG"]) as picture:
                picture.load()
        except (OSError, SyntaxError, ValueError) as error:
            journal.set_aside(image.file, f"{image.file.name} is damaged ({error})")
            return
        try:
            self._client.log_image(
                self._run_id, picture, key=image.name, step=image.step, timestamp=image.time, synchronous=True
            )
        except Exception as error:
            self._images_sent = None  # the answer may be lost although the server has it
            if error_code(error) not in _REFUSED:
                raise
            journal.set_aside(image.file, f"MLflow refuses an image ({explain(error)})")
            return
        journal.remove(image.file)

    def _send_artifact(self, journal: Journal, file: Path) -> None:
        folder = file.parent.relative_to(journal.artifacts_folder).as_posix()
        inode = file.stat().st_ino
        try:
            self._client.log_artifact(self._run_id, str(file), None if folder == "." else folder)
        except Exception as error:
            if error_code(error) not in _REFUSED:
                raise
            journal.set_aside(file, f"MLflow refuses a file ({explain(error)})")
        else:
            journal.remove(file, inode)

    def _send_checkpoints(self, journal: Journal, content: dict[str, Any], files: list[Path]) -> None:
        try:
            kept = check_record(list[TrackedCheckpoint], content["checkpoints"])
            dataset = check_record(InputDataset | None, content["validated_on"])  # type: ignore[arg-type]
            params = dict(content["params"])
        except (KeyError, TypeError, ValueError):
            journal.set_aside(files[-1], f"{files[-1].name} is damaged")
            return
        try:
            sync_checkpoints(self._client, self._run_id, kept, params, dataset)
        except Exception as error:
            # A server before MLflow 3 has no LoggedModels.
            if error_code(error) not in (*_REFUSED, "ENDPOINT_NOT_FOUND") or "'active' state" in str(error):
                raise
            journal.set_aside(files[-1], f"MLflow refuses the list of checkpoints ({explain(error)})")
        for file in files:
            journal.remove(file)

    def _end(self, journal: Journal, content: dict[str, Any], file: Path) -> None:
        self._client.set_terminated(self._run_id, status=content["status"], end_time=content.get("time"))
        journal.remove(file)


_pausing = threading.Lock()
_pauses, _searched = 0, True


@contextmanager
def _without_cycle_search() -> Iterator[None]:
    """Pause Python's search for cycles of references, which the thousands of objects of one request start often.

    A third of the time of a request goes into it. What is in no cycle is freed as always.
    """
    global _pauses, _searched
    with _pausing:  # two threads may send at the same time
        if not _pauses:
            _searched = gc.isenabled()
            gc.disable()
        _pauses += 1
    try:
        yield
    finally:
        with _pausing:
            _pauses -= 1
            if _searched and not _pauses:
                gc.enable()


def _send_abandoned(uri: str, source: str, target: str, spool: Path, *, owned: bool = False) -> int:
    """Send the journals that ended processes left for run `source` to run `target`; return the number of things sent.

    `owned`: this process runs `target`, so how an earlier one ended says nothing.
    """
    count, sender = 0, None
    for journal in Journal.abandoned(spool, source):
        try:
            sender = sender or _Sender(uri, target)
            count += sender.send(journal, abandoned=True, owned=owned)
        except BaseException:
            journal.close()
            raise
        journal.discard()
    return count


def _milliseconds(file: Path) -> int:
    """Return when a list of checkpoints was stored."""
    number = file.stem.rpartition("-")[2]
    return int(number) // 1_000_000 if number.isdecimal() else 0


def _about(spool: Path, run_id: str) -> dict[str, str] | None:
    """Return what the abandoned journals of a run say of it, None if there are none."""
    about = None
    for journal in Journal.abandoned(spool, run_id):
        about = {**(about or {}), **journal.about}
        journal.close()
    return about


def _is_active(client: Any, run_id: str) -> bool:
    """Return whether MLflow has this run and it is not deleted."""
    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except Exception as error:
        if error_code(error) != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def _successor(uri: str, run_id: str, name: str) -> str | None:
    """Return the newest run of this name if MLflow no longer has the run with this id, else None."""
    client = connect(uri)
    if not name or _is_active(client, run_id):
        return None
    ids = [one.experiment_id for one in client.search_experiments()]
    newest = ["attributes.start_time DESC"]
    found = client.search_runs(ids, f"tags.`{RUN_TAG}` = '{name}'", order_by=newest, max_results=1)
    return str(found[0].info.run_id) if found else None
