"""Own a run or a sweep: of all drivers, on any machine, one at a time writes it.

    <folder>/owner/<number>-<token>.json    a claim: who made it, how often it was renewed, whether it is released

The highest claim owns the folder. Whoever wants it writes a claim with the next number, and lists again: of two that do
so at once, at least one sees the other and withdraws, since a store lists what was written before. No conditional
request is needed, which not all S3 servers have.

An owner renews its claim every `RENEW_SECONDS`. It is dead if it ran on this machine and its process is gone, or if it
did not renew its claim for `LEASE_SECONDS` of the observer's own clock; clocks of two machines are never compared. An
owner that was suspended for that long finds the claim of its successor, and stops.

The number of the owner's claim orders the workers of a run too (`orchestrator.training.fencing`).
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.errors import OwnedError
from orchestrator.records import RecordError, read_record
from shards.errors import CorruptObjectError, MissingObjectError, StoreError
from shards.store import Store

log = logging.getLogger(__name__)

FOLDER = "owner"
RENEW_SECONDS = 5.0
LEASE_SECONDS = 60.0
_POLL_SECONDS = 0.5
_CLAIM = re.compile(r"[^/]+/(\d{6})-[0-9a-f]{32}\.json")


# --- claims ----------------------------------------------------------------------------------------------------


def next_claim(store: Store) -> str:
    """Return a new key that is higher than all claims."""
    newest = newest_claim(store)
    number = _number(newest) + 1 if newest else 1
    return f"{FOLDER}/{number:06d}-{uuid.uuid4().hex}.json"


def next_number(store: Store) -> int:
    """Take the next number of the folder `store` without owning it, for workers that no owner has started."""
    key = next_claim(store)
    store.write_pointer(key, replace(Owner.here(), released=True).to_json())
    _delete_older_claims(store, key)
    return _number(key)


def newest_claim(store: Store) -> str:
    """Return the highest claim, or ""."""
    return max(_claims(store), default="")


def current_owner(store: Store) -> Owner | None:
    """Return the owner of the folder `store` that is at work, as far as one look can tell, else None."""
    newest = newest_claim(store)
    owner = _read(store, newest) if newest else None
    if owner is None or owner.is_gone():
        return None
    return owner if owner.is_here() or _is_recent(store, newest) else None


def _delete_older_claims(store: Store, own: str) -> None:
    """Delete the claims below `own`."""
    for key in _claims(store):
        if key < own:
            store.delete(key)


def _number(claim: str) -> int:
    return int(claim.partition("/")[2][:6])


def _claims(store: Store) -> list[str]:
    return [key for key in store.list(f"{FOLDER}/") if _CLAIM.fullmatch(key)]


# --- owners ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Owner:
    """The content of a claim."""

    submission: str
    """Id of the Ray job, "" without one."""
    host: str
    pid: int
    process: str
    """Names exactly this process on exactly this machine, unlike its id."""
    since_unix: float
    renewed: int = 0
    released: bool = False

    @classmethod
    def here(cls) -> Owner:
        """Return a claim of this process."""
        pid = os.getpid()
        started = _start_of(pid)
        return cls(
            submission_id(),
            socket.gethostname(),
            pid,
            f"{_machine()}:{pid}:{started}",
            round(time.time(), 3),
        )

    @classmethod
    def from_json(cls, data: bytes) -> Owner:
        """Return the content of a claim, also of one that a later version wrote with more fields."""
        return read_record(cls, data)

    def to_json(self) -> bytes:
        """Return what `from_json` reads."""
        return json.dumps(asdict(self), indent=1).encode()

    def is_gone(self) -> bool:
        """Return whether the owner has released its claim, or is a process of this machine that has ended."""
        machine, _, process = self.process.rpartition(":")[0].rpartition(":")
        if self.released:
            return True
        return machine == _machine() and f"{machine}:{process}:{_start_of(self.pid)}" != self.process

    def is_here(self) -> bool:
        """Return whether the owner is a process of this machine."""
        return self.process.startswith(f"{_machine()}:")

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since_unix, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        process = f"process {self.pid} on {self.host}"
        return f"{f'job {self.submission} ({process})' if self.submission else process} since {since}"

    def commands(self) -> str:
        """Return how to watch and stop the owner."""
        if self.submission:
            return (
                f"Watch it: ray job logs {self.submission} --follow. Stop it: ray job stop {self.submission}"
            )
        return f"Stop it, with a checkpoint: kill {self.pid}" + (
            "" if self.is_here() else f", on {self.host}"
        )


def submission_id() -> str:
    """Return the id of the Ray job that this process is the driver of, or ""."""
    try:
        config = json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])
        return str(config["metadata"]["job_submission_id"])
    except (KeyError, ValueError, TypeError):
        return ""


def _machine() -> str:
    """Return what identifies the process ids of this boot of this machine, or of this container."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return f"{socket.gethostname()}-{uuid.getnode()}"


def _start_of(pid: int) -> str:
    """Return when a process started, in clock ticks since the boot; "" if it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]


# --- the lease -------------------------------------------------------------------------------------------------


class Lease:
    """The claim of this process, renewed by a thread until `release`."""

    def __init__(self, store: Store, key: str, owner: Owner, what: str, on_lost: Callable[[], None]) -> None:
        self._store, self._key, self._owner, self._what = store, key, owner, what
        self._on_lost = on_lost
        self._lost = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    @property
    def key(self) -> str:
        """Key of the claim."""
        return self._key

    @property
    def number(self) -> int:
        """Number of the claim; a later owner has a higher one."""
        return _number(self._key)

    def check(self) -> None:
        """Raise OwnedError if another process has taken over."""
        self._look()
        if self._lost:
            raise OwnedError(self._lost)

    def release(self) -> None:
        """End the claim; after a failure of the store it ends by itself after `LEASE_SECONDS`."""
        self._ended.set()
        self._thread.join()
        if not self._lost:
            try:
                self._store.write_pointer(self._key, replace(self._owner, released=True).to_json())
            except StoreError as error:
                log.info("%s is not released: %s", self._what, error)

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            try:
                self._look()
                if self._lost:
                    self._on_lost()
                    return
                self._owner = replace(self._owner, renewed=self._owner.renewed + 1)
                self._store.write_pointer(self._key, self._owner.to_json())
            except Exception as error:  # of boto too: without renewals another driver would take over
                log.info("the claim of %s is not renewed: %s", self._what, error)

    def _look(self) -> None:
        """Find out whether there is a successor: a claim that is renewed, or that is not withdrawn for a while."""
        successor, since = "", 0.0
        while not self._lost and (newest := newest_claim(self._store)) > self._key:
            if newest != successor:
                successor, since = newest, time.monotonic()
            owner = _read(self._store, newest)
            stays = time.monotonic() - since > 2 * RENEW_SECONDS
            if owner is not None and (owner.renewed or owner.released or stays):
                self._lost = (
                    f"{self._what} was taken over by {owner}, because this process did not renew its claim for "
                    f"{LEASE_SECONDS:.0f} s. It stops without writing anything more."
                )
            elif self._ended.wait(2 * _POLL_SECONDS):
                return


@contextmanager
def owned(
    store: Store,
    what: str,
    echo: Callable[[str], None],
    *,
    wait: bool | None = None,
    on_lost: Callable[[], None] = lambda: None,
) -> Iterator[Lease]:
    """Own the folder `store` for the time of the block; `what` names it in messages.

    While another process owns it: raises OwnedError, or waits with `wait`; None: the caller has no `--wait` to advise.
    `on_lost` is called in a thread when another process has taken over.
    """
    key, owner = _acquire(store, what, echo, wait)
    lease = Lease(store, key, owner, what, on_lost)
    try:
        yield lease
    finally:
        lease.release()


def _acquire(store: Store, what: str, echo: Callable[[str], None], wait: bool | None) -> tuple[str, Owner]:
    mine, watch, announced = Owner.here(), _Watch(store, what), False
    while True:
        rival = watch.rival()
        if rival is None:
            key = next_claim(store)
            store.write_pointer(key, mine.to_json())
            if watch.free >= {*_claims(store)} - {key}:
                _delete_older_claims(store, key)
                return key, mine
            store.delete(key)
        elif watch.alive and not wait:
            advice = "" if wait is None else " To wait until it has ended: --wait"
            raise OwnedError(f"{what} belongs to {rival}, which is at work. {rival.commands()}.{advice}")
        elif not announced:
            announced = True
            doing = "waiting until it has ended" if wait else "looking for a sign of life"
            echo(f"{what} belongs to {rival}: {doing}. {rival.commands()}")
        time.sleep(_POLL_SECONDS * (0.5 + random.random()))


class _Watch:
    """Observes the claims of others on a folder."""

    def __init__(self, store: Store, what: str) -> None:
        self._store, self._what = store, what
        self._seen: dict[str, tuple[Owner, float]] = {}
        """Claim -> its content, and when that was first seen."""
        self.free: set[str] = set()
        """Claims of owners that are gone or dead."""
        self.alive = False
        """Whether the newest rival is known to be alive."""

    def rival(self) -> Owner | None:
        """Return the newest owner that is not known to be gone or dead."""
        for key in sorted({*_claims(self._store)} - self.free, reverse=True):
            owner = _read(self._store, key)
            if owner is None:
                continue
            before, since = self._seen.get(key, (None, 0.0))
            if owner != before:
                self._seen[key] = owner, time.monotonic()
            elif time.monotonic() - since > LEASE_SECONDS:
                log.warning(
                    "%s: taking over from %s, which gave no sign of life for %g s",
                    self._what,
                    owner,
                    LEASE_SECONDS,
                )
                self.free.add(key)
                continue
            if owner.is_gone():
                self.free.add(key)
                continue
            renewed = before is not None and owner != before
            self.alive = renewed or (owner.is_here() and _is_recent(self._store, key))
            return owner
        return None


def is_abandoned(store: Store) -> bool:
    """Return whether nobody works on the folder `store`: no owner, one that is gone, or one without a sign of life.

    The last one is judged by the clocks of this machine and of the store.
    """
    key = newest_claim(store)
    owner = _read(store, key) if key else None
    if owner is None or owner.is_gone():
        return True
    return not owner.is_here() and not _is_recent(store, key, LEASE_SECONDS)


def _is_recent(store: Store, key: str, seconds: float = 3 * RENEW_SECONDS) -> bool:
    """Return whether a claim was renewed within the last `seconds`, by the clock of this machine."""
    try:
        return abs(time.time() - store.stat(key).modified_unix) < seconds
    except MissingObjectError:
        return False


def _read(store: Store, key: str) -> Owner | None:
    """Return the content of a claim, None if it has been withdrawn, and an unknown owner if it is damaged."""
    try:
        data = store.read_pointer(key)
        return None if data is None else Owner.from_json(data)
    except (CorruptObjectError, RecordError):
        return Owner("", "an unknown machine (its claim is damaged)", 0, "", 0.0)
