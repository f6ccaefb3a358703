"""What a run has to tell its tracking server, on disk until the server has it.

    <folder>/<run id>/<start>-<pid>.jsonl     one line per step: {"step", "time", "values"}
    <folder>/<run id>/<start>-<pid>/          one PNG per picture: <step>-<time>-<quoted name>.png

A journal belongs to the process that writes it, which holds a lock on the file; the kernel lets go of it when
the process dies, so a journal that can be locked was left behind and may be replayed by whoever comes first.
Writing is an append to a local file: the page cache takes it, and it outlives a `kill -9` of its writer.
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
"""A journal takes no more than this: a server that is gone for good must not fill the disk."""


class StepMetrics(NamedTuple):
    """The numbers of one step; `time` is milliseconds since 1970."""

    step: int
    time: int
    values: dict[str, float]


class PendingImage(NamedTuple):
    """One PNG file that waits to be sent."""

    name: str
    step: int
    time: int
    file: Path


class JournalFullError(Exception):
    """The journal has reached its limit and takes nothing more."""


class Journal:
    """Records and pictures of one process for one run, in the order in which they were made."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self._file = file
        self._room = MAX_BYTES - path.stat().st_size
        self._read = 0  # bytes that the server has

    @classmethod
    def create(cls, folder: Path, run_id: str) -> Journal:
        """Start the journal of this process for `run_id`. Raises OSError where `folder` cannot be written."""
        path = folder / run_id / f"{time.time_ns()}-{os.getpid()}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("xb", buffering=0)
        fcntl.flock(file, fcntl.LOCK_EX)
        return cls(path, file)

    @classmethod
    def left_behind(cls, folder: Path, run_id: str) -> Iterator[Journal]:
        """Yield the journals of `run_id` whose writers are gone, oldest first, locked for the caller."""
        for path in sorted((folder / run_id).glob("*.jsonl")):
            file = path.open("ab", buffering=0)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()  # its writer lives
            else:
                yield cls(path, file)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Append one step. Raises OSError or JournalFullError."""
        record = {"step": step, "time": time.time_ns() // 1_000_000, "values": dict(values)}
        line = json.dumps(record).encode() + b"\n"
        self._take(len(line))
        self._file.write(line)

    def add_picture(self, name: str, png: bytes, step: int) -> None:
        """Store one picture; it appears under its final name only when whole. Raises like `add`."""
        self._take(len(png))
        folder = self.path.with_suffix("")
        folder.mkdir(exist_ok=True)
        final = folder / f"{step}-{time.time_ns() // 1_000_000}-{quote(name, safe='')}.png"
        partial = final.with_suffix(".part")
        partial.write_bytes(png)
        partial.replace(final)

    def pending(self, max_values: int) -> tuple[list[StepMetrics], int]:
        """Return the next records, at most `max_values` numbers in all but at least one record, and a mark.

        Give the mark to `sent` when the server has them. A line that a dying writer cut short is left out.
        """
        records: list[StepMetrics] = []
        count, mark = 0, self._read
        with self.path.open("rb") as file:
            file.seek(mark)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                record = StepMetrics(**json.loads(line))
                count += len(record.values)
                if records and count > max_values:
                    break
                records.append(record)
                mark += len(line)
        return records, mark

    def sent(self, mark: int) -> None:
        """Remember that everything up to `mark` has arrived."""
        self._read = mark

    def pictures(self) -> list[PendingImage]:
        """Return the pictures that wait, by step."""
        found = []
        for file in self.path.with_suffix("").glob("*.png"):
            step, milliseconds, name = file.stem.split("-", 2)
            found.append(PendingImage(unquote(name), int(step), int(milliseconds), file))
        return sorted(found, key=lambda picture: (picture.step, picture.name))

    def close(self) -> None:
        """Let go of the journal and leave it for a later replay."""
        self._file.close()

    def discard(self) -> None:
        """Delete the journal: the server has all of it."""
        shutil.rmtree(self.path.with_suffix(""), ignore_errors=True)
        self.path.unlink(missing_ok=True)
        self._file.close()
        with suppress(OSError):  # other journals of the run are still there
            self.path.parent.rmdir()

    def _take(self, size: int) -> None:
        if size > self._room:
            raise JournalFullError(f"{self.path.name} has reached its limit")
        self._room -= size
