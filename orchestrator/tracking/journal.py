"""Hold on disk what a run reports, until the tracking server has it.

    <spool>/<run id>/<start>-<pid>.jsonl     a line {"server", "run"}, then one per step: {"step", "time", "values"}
    <spool>/<run id>/<start>-<pid>/          <step>-<time>-<quoted name>.png    an image
                                             artifacts/<path>                   a file of the run
                                             checkpoints-<number>-<time>.json   the checkpoints that the store keeps
                                             status.json                        how the run ended
    <spool>/damaged/<run id>-<start>-<pid>…  what cannot be read or is refused by the server

A journal belongs to the process that writes it, which locks the file. The kernel releases the lock when the process
dies, so a journal that can be locked is abandoned, and any process may replay it. Writing is an append to a local file:
it is in the page cache at once and survives a `kill -9` of its writer. What was sent is deleted, so the size of a
journal is what waits.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import quote, unquote

from orchestrator.records import read_record

log = logging.getLogger(__name__)

MAX_BYTES = 256 * 2**20
"""Size limit of what waits in a journal, so that a lost server does not fill the disk."""
COMPACT_BYTES = 2**20
"""Size of the sent part of a journal that never empties at which that part is deleted."""
DAMAGED = "damaged"
"""Folder in the spool with what was set aside."""
STATUSES = ("FINISHED", "FAILED", "KILLED")
"""How a run may end."""
_RECORD = b'{"step"'
"""What each line of metrics begins with."""
_UNREADABLE = (ValueError, OverflowError)
_INT64 = 2**63


class StepMetrics(NamedTuple):
    """The metrics of one step; `time` is milliseconds since 1970."""

    step: int
    time: int
    values: dict[str, float]


class PendingImage(NamedTuple):
    """A PNG file that waits to be sent; `time` is milliseconds since 1970."""

    name: str
    step: int
    time: int
    file: Path


class JournalFullError(Exception):
    """The journal has reached its size limit."""


class Journal:
    """What one process reported for one run: metrics in their order, images, files, checkpoints and how it ended."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self.folder = path.with_suffix("")
        self._file = file
        self._lock = threading.RLock()
        self._size = path.stat().st_size
        self._bytes_in_files = 0
        self._damaged: list[bytes] = []
        """Lines before the newest mark that cannot be read."""
        with path.open("rb") as lines:
            first = lines.readline()
        self.about = _about(first)
        """The server and the name of the run, empty in a journal of an earlier release."""
        self._header = first if self.about else b""
        self._sent = self._start = len(self._header)

    @classmethod
    def create(cls, spool: Path, run_id: str, about: Mapping[str, str] | None = None) -> Journal:
        """Create the journal of this process for `run_id`. Raises OSError if `spool` cannot be written."""
        path = spool / run_id / f"{time.time_ns()}-{os.getpid()}.jsonl"
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # another process has just sent the last journal of the folder
                created = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
                file = os.fdopen(created, "ab", buffering=0)
                fcntl.flock(file, fcntl.LOCK_EX)
                if path.stat().st_ino == os.fstat(created).st_ino:  # or it took this one for an abandoned one
                    break
        if about:
            _write_whole(file, json.dumps(dict(about)).encode() + b"\n")
        return cls(path, file)

    @classmethod
    def abandoned(cls, spool: Path, run_id: str) -> Iterator[Journal]:
        """Yield the journals of `run_id` whose writers have died, oldest first, locked for the caller."""
        for path in sorted((spool / run_id).glob("*.jsonl")):
            try:
                found = cls._locked(path)
            except FileNotFoundError:
                continue  # another process has sent it
            except OSError as error:
                log.warning("%s is left alone: %s", path, error)
                continue
            if found:
                yield found

    @classmethod
    def _locked(cls, path: Path) -> Journal | None:
        """Return the journal, locked, or None if its writer is alive."""
        with path.open("rb"):
            file = path.open("ab", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return cls(path, file)
        except BlockingIOError:
            pass
        except OSError:
            file.close()
            raise
        file.close()  # its writer holds it, or has just compacted it
        return None

    # --- written by the run

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Append the metrics of one step. Raises OSError or JournalFullError, and then nothing is appended."""
        content = {"step": step, "time": time.time_ns() // 1_000_000, "values": dict(values)}
        line = json.dumps(content).encode() + b"\n"
        with self._lock:
            self._check_room(len(line))
            _write_whole(self._file, line)
            self._size += len(line)

    def add_image(self, name: str, png: bytes, step: int) -> None:
        """Store one image. Raises OSError or JournalFullError."""
        self._store(f"{step}-{time.time_ns() // 1_000_000}-{quote(name, safe='')}.png", png)

    def add_artifact(self, path: str, content: bytes) -> None:
        """Store a file of the run; it replaces an earlier one of the same path. Raises OSError or JournalFullError."""
        self._store(f"artifacts/{path}", content)

    def add_checkpoints(self, content: Mapping[str, Any]) -> None:
        """Store the list of checkpoints, which replaces an earlier one. Raises OSError or JournalFullError."""
        earlier = self._lists()
        number = _number(earlier[-1]) + 1 if earlier else 1  # clocks go back
        self._store(f"checkpoints-{number}-{time.time_ns()}.json", json.dumps(content).encode())
        for file in earlier:
            self.remove(file)

    def end(self, status: str) -> None:
        """Store how the run ended. Raises OSError or JournalFullError."""
        content = {"status": status, "time": time.time_ns() // 1_000_000}
        self._store("status.json", json.dumps(content).encode())

    # --- read by the sender

    def pending(self, max_values: int) -> tuple[list[StepMetrics], int]:
        """Return the next steps, with at most `max_values` metrics but at least one step, and a mark.

        Pass the mark to `sent` when the server has them, which also sets damaged lines aside. An incomplete line of a
        killed writer is left out.
        """
        steps: list[StepMetrics] = []
        count, mark = 0, self._sent
        self._damaged = []
        with self.path.open("rb") as file:
            file.seek(mark)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                whole, step = _read(line)
                if step is not None:
                    count += len(step.values)
                    if steps and count > max_values:
                        break
                    steps.append(step)
                if not whole:
                    self._damaged.append(line)
                mark += len(line)
        return steps, mark

    def sent(self, mark: int) -> None:
        """Record that the server has everything up to `mark`, and delete that part of the file."""
        for line in self._damaged:
            self.set_aside(line, "a line of its journal is damaged")
        self._damaged = []
        with self._lock:
            self._sent = mark
            if mark == self._size:
                os.ftruncate(self._file.fileno(), self._start)
                self._size = self._sent = self._start
            elif mark >= COMPACT_BYTES:
                with suppress(OSError):  # no room for the copy: another time
                    self._compact()

    def images(self) -> list[PendingImage]:
        """Return the images that wait, by step."""
        found = []
        for file in self.folder.glob("*.png"):
            try:
                step, milliseconds, name = file.stem.split("-", 2)
                found.append(PendingImage(unquote(name), int(step), int(milliseconds), file))
            except ValueError:
                self.set_aside(file, f"{file.name} is no image of a step")
        return sorted(found, key=lambda image: (image.step, image.name))

    def artifacts(self) -> list[Path]:
        """Return the files of the run that wait, below `artifacts_folder`."""
        return sorted(
            path for path in self.artifacts_folder.rglob("*") if path.is_file() and path.suffix != ".part"
        )

    @property
    def artifacts_folder(self) -> Path:
        """Folder whose files become artifacts of the run."""
        return self.folder / "artifacts"

    def checkpoints(self) -> tuple[dict[str, Any], list[Path]] | None:
        """Return what was last stored of the checkpoints, and the files to remove when the server has it."""
        with self._lock:  # a newer list would replace it meanwhile
            files = self._lists()
            content = self._json(files[-1], "checkpoints") if files else None
        return (content, files) if content else None

    def _lists(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoints-*.json"), key=lambda file: (_number(file), file.name))

    def status(self) -> tuple[dict[str, Any], Path] | None:
        """Return how the run ended, and the file to remove when the server has it."""
        file = self.folder / "status.json"
        content = self._json(file, "status") if file.exists() else None
        if content and (content["status"] not in STATUSES or not isinstance(content.get("time"), int)):
            self.set_aside(file, f"{file.name} is damaged")
            return None
        return (content, file) if content else None

    def remove(self, file: Path, inode: int | None = None) -> None:
        """Delete a file that the server has; with `inode`, unless another one has replaced it."""
        with self._lock, suppress(FileNotFoundError):
            found = file.stat()
            if inode in (None, found.st_ino):
                file.unlink()
                self._bytes_in_files = max(self._bytes_in_files - found.st_size, 0)

    def set_aside(self, what: Path | StepMetrics | bytes, why: str) -> None:
        """Move a file, a step or a line to the folder `damaged`, and say why."""
        folder = self.path.parents[1] / DAMAGED
        name = f"{self.path.parent.name}-{self.path.stem}"
        target = folder / (f"{name}-{what.name}" if isinstance(what, Path) else f"{name}.jsonl")
        try:
            folder.mkdir(exist_ok=True)
            if isinstance(what, Path):
                with self._lock:
                    size = what.stat().st_size
                    what.replace(target)
                    self._bytes_in_files = max(self._bytes_in_files - size, 0)
            else:
                line = what if isinstance(what, bytes) else json.dumps(what._asdict()).encode() + b"\n"
                with target.open("ab") as file:
                    file.write(line)
        except OSError as error:
            log.warning("run %s: %s. It cannot be kept: %s", self.path.parent.name, why, error)
            return
        log.warning(
            "run %s: %s. It is set aside in %s and not in MLflow.", self.path.parent.name, why, target
        )

    def waiting(self) -> str:
        """Return what waits, in words; "" if nothing does."""
        with self.path.open("rb") as file:
            file.seek(self._sent)
            steps = sum(line.endswith(b"\n") for line in file)
        counts = {"step": steps, "image": len(self.images()), "file": len(self.artifacts())}
        found = [f"{count} {noun}{'' if count == 1 else 's'}" for noun, count in counts.items() if count]
        if any(self.folder.glob("checkpoints-*.json")):
            found.append("the list of checkpoints")
        if self.status():
            found.append("the status of the run")
        return ", ".join(found)

    def waiting_bytes(self) -> int:
        """Return the size of what waits."""
        return self._size - self._sent + self._bytes_in_files

    def close(self) -> None:
        """Unlock the journal and leave it for a later replay."""
        self._file.close()

    def discard(self) -> None:
        """Delete the journal."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.path.unlink(missing_ok=True)
        self._file.close()
        with suppress(OSError):  # other journals of the run are still there
            self.path.parent.rmdir()

    # --- on disk

    def _json(self, file: Path, key: str) -> dict[str, Any] | None:
        try:
            content = read_record(dict[str, Any], file.read_bytes())
            if key in content:
                return content
        except _UNREADABLE:
            pass
        self.set_aside(file, f"{file.name} is damaged")
        return None

    def _store(self, name: str, content: bytes) -> None:
        """Write a file; it gets its name when it is complete."""
        final = self.folder / name
        partial = final.with_name(f"{final.name}.part")
        with self._lock:
            self._check_room(len(content))
            replaced = final.stat().st_size if final.exists() else 0
            try:
                final.parent.mkdir(parents=True, exist_ok=True)
                partial.write_bytes(content)
                partial.replace(final)
            except OSError:
                with suppress(OSError):
                    partial.unlink()
                raise
            self._bytes_in_files += len(content) - replaced

    def _check_room(self, size: int) -> None:
        if self.waiting_bytes() + size > MAX_BYTES:
            raise JournalFullError(
                f"{self.path} has reached its size limit of {MAX_BYTES >> 20} MiB; MLflow has taken nothing for long"
            )

    def _compact(self) -> None:
        """Replace the file by one without what was sent. It is locked before it gets its name."""
        rest = self.path.read_bytes()[self._sent :]
        partial = self.path.with_suffix(".part")
        file = partial.open("wb", buffering=0)
        file.close()
        file = partial.open("ab", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            _write_whole(file, self._header + rest)
            partial.replace(self.path)
        except OSError:
            file.close()
            partial.unlink(missing_ok=True)
            raise
        self._file.close()
        self._file = file
        self._size, self._sent = self._start + len(rest), self._start


def _number(file: Path) -> int:
    """Return the number of a list of checkpoints; earlier releases gave it none."""
    number, _, time_ns = file.stem.removeprefix("checkpoints-").partition("-")
    return int(number) if time_ns and number.isdecimal() else 0


def waiting_runs(spool: Path) -> list[str]:
    """Return the ids of the runs that have journals."""
    return sorted({path.parent.name for path in spool.glob("*/*.jsonl")} - {DAMAGED})


def _write_whole(file: IO[bytes], content: bytes) -> None:
    """Append all of `content` or nothing. A full disk may take a part of it, which is cut off again."""
    before = os.fstat(file.fileno()).st_size
    try:
        while content:
            content = content[file.write(content) :]
    except OSError:
        with suppress(OSError):
            os.ftruncate(file.fileno(), before)
        raise


def _about(line: bytes) -> dict[str, str]:
    """Return the content of the first line of a journal, {} if it holds the metrics of a step or is damaged."""
    with suppress(*_UNREADABLE):
        content = read_record(dict[str, Any], line)
        if "server" in content and line.endswith(b"\n"):
            return {key: value for key, value in content.items() if isinstance(value, str)}
    return {}


def _read(line: bytes) -> tuple[bool, StepMetrics | None]:
    """Return whether a line is whole, and its metrics. Of two lines that were merged, the second may be readable."""
    with suppress(*_UNREADABLE):
        return True, _step_metrics(line)
    with suppress(*_UNREADABLE):
        return False, _step_metrics(line[line.rindex(_RECORD) :])
    return False, None


def _step_metrics(line: bytes) -> StepMetrics:
    """Return the metrics of a line. Raises one of `_UNREADABLE` if it is damaged."""
    content = read_record(dict[str, Any], line)
    if content.keys() != {"step", "time", "values"}:
        raise ValueError("not the metrics of a step")
    step, milliseconds, values = content["step"], content["time"], content["values"]
    numbers = [step, milliseconds, *(values.values() if isinstance(values, dict) else ["no values"])]
    if any(isinstance(number, bool) or not isinstance(number, int | float) for number in numbers):
        raise ValueError("not numbers")
    if not (isinstance(step, int) and isinstance(milliseconds, int)):
        raise ValueError("not a step and a time")
    if not (-_INT64 <= step < _INT64 and 0 <= milliseconds < _INT64):
        raise ValueError("out of the range that MLflow holds")
    return StepMetrics(step, milliseconds, {name: float(value) for name, value in values.items()})
