"""Let only the newest workers of a run write to it.

A hung node may train on after Ray has replaced its worker, and so may the workers of a driver that was replaced. Each
group of workers therefore claims to write when it starts, with its turn in the claim's name; before each write, and
before each further attempt of its requests, it looks for the claim of a later turn. A group that hung before it claimed
is too late: it is refused.
"""

from __future__ import annotations

import json
import os
import re
import socket
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

from orchestrator.errors import NewOwnerError, SupersededError
from orchestrator.ownership import next_number
from shards.store import Store
from shards.store.retry import checking_before_retries

_FOLDER = "writer"
_CLAIM = re.compile(rf"{_FOLDER}/(\d{{6}})(-\d{{6}}){{2}}-[0-9a-f]{{32}}\.json")
_WRITES = ("write", "write_file", "create", "write_pointer", "delete")


class Turn(NamedTuple):
    """The place of a group of workers among all groups of a run; the later one may write."""

    owner: int
    """Number of the driver's claim (`orchestrator.ownership`)."""
    launch: int = 0
    """Calls of Ray Train by this driver so far."""
    group: int = 0
    """Groups of this call so far."""


def new_claim(store: Store, turn: Turn | None = None) -> str:
    """Return the name of a claim, which is not written yet. Without a `turn` it is later than all others."""
    numbers = turn or Turn(next_number(store))
    return f"{_FOLDER}/{'-'.join(f'{number:06d}' for number in numbers)}-{uuid.uuid4().hex}.json"


def write_claim(store: Store, claim: str) -> None:
    """Make a group of workers the only one that may write to the run's folder. Raises SupersededError."""
    require_newest(store, claim)
    store.write(claim, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())
    for key in _claims(store):
        if key < claim:
            store.delete(key)


def require_newest(store: Store, claim: str) -> None:
    """Raise SupersededError if there is the claim of a later turn, NewOwnerError if it is another driver's."""
    newest = max(_claims(store), default="")
    if newest > claim:
        kind = SupersededError if _owner(newest) == _owner(claim) else NewOwnerError
        raise kind(
            f"{store.uri} is written by other workers by now ({newest}). These stop without writing anything more."
        )


def fenced(store: Store, claim: str) -> Store:
    """Return the store, whose writes raise SupersededError as soon as there is a newer claim."""
    return cast(Store, _FencedStore(store, claim))


def _claims(store: Store) -> list[str]:
    return [key for key in store.list(f"{_FOLDER}/") if _CLAIM.fullmatch(key)]


def _owner(claim: str) -> str:
    return claim.partition("-")[0]


class _FencedStore:
    def __init__(self, store: Store, claim: str) -> None:
        self._store, self._claim = store, claim

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        method = getattr(self._store, name)
        return partial(self._checked, method) if name in _WRITES else method

    def _checked(self, write: Callable[..., Any], *args: Any, **options: Any) -> Any:
        self._check()
        with checking_before_retries(self._check):
            return write(*args, **options)

    def _check(self) -> None:
        require_newest(self._store, self._claim)
