"""Metrics and images of a run, on disk until the tracking server has them.

    <folder>/<run id>/<start>-<pid>.jsonl     one line per step: {"step", "time", "values"}
    <folder>/<run id>/<start>-<pid>/          one PNG per image: <step>-<time>-<quoted name>.png

A journal belongs to the process that writes it, which locks the file. The kernel releases the lock when the process
dies, so a journal that can be locked is abandoned, and any process may replay it. Writing is an append to a local file:
it is in the page cache at once and survives a `kill -9` of its writer.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import quote, unquote

MAX_BYTES = 256 * 2**20
"""Size limit of a journal, so that a lost server does not fill the disk."""


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
    """Metrics and images of one process for one run, in the order in which they were logged."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self._file = file
        self._bytes_left = MAX_BYTES - path.stat().st_size
        self._bytes_sent = 0

    @classmethod
    def create(cls, folder: Path, run_id: str) -> Journal:
        """Create the journal of this process for `run_id`. Raises OSError if `folder` cannot be written."""
        path = folder / run_id / f"{time.time_ns()}-{os.getpid()}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("xb", buffering=0)
        fcntl.flock(file, fcntl.LOCK_EX)
        return cls(path, file)

    @classmethod
    def abandoned(cls, folder: Path, run_id: str) -> Iterator[Journal]:
        """Yield the journals of `run_id` whose writers have died, oldest first, locked for the caller."""
        for path in sorted((folder / run_id).glob("*.jsonl")):
            file = path.open("ab", buffering=0)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()  # its writer is alive
            else:
                yield cls(path, file)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Append the metrics of one step. Raises OSError or JournalFullError."""
        content = {"step": step, "time": time.time_ns() // 1_000_000, "values": dict(values)}
        line = json.dumps(content).encode() + b"\n"
        self._reserve(len(line))
        self._file.write(line)

    def add_image(self, name: str, png: bytes, step: int) -> None:
        """Store one image; it gets its final name when it is complete. Raises OSError or JournalFullError."""
        self._reserve(len(png))
        folder = self.path.with_suffix("")
        folder.mkdir(exist_ok=True)
        final = folder / f"{step}-{time.time_ns() // 1_000_000}-{quote(name, safe='')}.png"
        partial = final.with_suffix(".part")
        partial.write_bytes(png)
        partial.replace(final)

    def pending(self, max_values: int) -> tuple[list[StepMetrics], int]:
        """Return the next steps, with at most `max_values` metrics but at least one step, and a mark.

        Pass the mark to `sent` when the server has them. An incomplete line of a killed writer is left out.
        """
        steps: list[StepMetrics] = []
        count, mark = 0, self._bytes_sent
        with self.path.open("rb") as file:
            file.seek(mark)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                step = StepMetrics(**json.loads(line))
                count += len(step.values)
                if steps and count > max_values:
                    break
                steps.append(step)
                mark += len(line)
        return steps, mark

    def sent(self, mark: int) -> None:
        """Record that the server has everything up to `mark`."""
        self._bytes_sent = mark

    def images(self) -> list[PendingImage]:
        """Return the images that wait, by step."""
        found = []
        for file in self.path.with_suffix("").glob("*.png"):
            step, milliseconds, name = file.stem.split("-", 2)
            found.append(PendingImage(unquote(name), int(step), int(milliseconds), file))
        return sorted(found, key=lambda image: (image.step, image.name))

    def close(self) -> None:
        """Unlock the journal and leave it for a later replay."""
        self._file.close()

    def discard(self) -> None:
        """Delete the journal."""
        shutil.rmtree(self.path.with_suffix(""), ignore_errors=True)
        self.path.unlink(missing_ok=True)
        self._file.close()
        with suppress(OSError):  # other journals of the run are still there
            self.path.parent.rmdir()

    def _reserve(self, size: int) -> None:
        if size > self._bytes_left:
            raise JournalFullError(f"{self.path.name} has reached its size limit")
        self._bytes_left -= size
