"""Record which commands of this machine use a project's cluster and store, so that `mirage down` does not stop them.

.mirage/running/<pid>.json    what runs, and the process
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.ownership import Owner
from orchestrator.records import RecordError, read_record
from shards.filesystem import read_regular

_FOLDER = "running"


@dataclass(frozen=True)
class User:
    """A running command."""

    what: str
    process: Owner

    def __str__(self) -> str:
        return f"{self.what}: {self.process}. {self.process.commands()}"


@dataclass(frozen=True)
class _Record:
    what: str
    process: str
    """Its owner, as JSON."""


@contextmanager
def using(home: Path, what: str) -> Iterator[None]:
    """Record for the time of the block that this process runs `what`; do without where the folder is read-only."""
    file = home / _FOLDER / f"{os.getpid()}.json"
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"what": what, "process": Owner.here().to_json().decode()}))
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink(missing_ok=True)


def users(home: Path) -> list[User]:
    """Return the commands that run now; records of killed ones are ignored."""
    found = []
    for file in sorted((home / _FOLDER).glob("*.json")):
        with suppress(OSError, RecordError):  # it has just ended, or is cut
            record = read_record(_Record, read_regular(file))
            user = User(record.what, Owner.from_json(record.process.encode()))
            if not user.process.is_gone():
                found.append(user)
    return found
